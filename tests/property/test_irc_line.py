"""Laws of the codec, for any input."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from serverchange.irc.line import LineBuffer, LineError, format_line, parse_line

WORD = st.text(st.characters(exclude_characters="\r\n\0 ", exclude_categories=["Cs"]), min_size=1, max_size=20).filter(
    lambda word: not word.startswith(":")
)
TEXT = st.text(st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]), max_size=40)
VALUE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
KEY = st.from_regex(r"\A\+?[a-z]{1,5}(/[a-z]{1,5})?\Z").map(str.strip).filter(lambda key: key.count("/") == 0)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(position % (len(data) + 1) for position in cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"\r\n", b"x" * 9, b"\xff", b" ", b"\0"]), max_size=60).map(b"".join),
    st.lists(st.integers(0, 10_000), max_size=20),
)
def test_any_split_of_the_bytes_gives_the_same_lines(data, cuts):
    whole, pieces = LineBuffer(limit_bytes=12), LineBuffer(limit_bytes=12)
    lines = [line for piece in cut(data, cuts) for line in pieces.receive_data(piece)]
    assert lines == whole.receive_data(data)
    assert pieces.refused_lines == whole.refused_lines


@given(
    st.from_regex(r"\A[A-Z]{1,10}\Z").map(str.strip),
    st.lists(WORD, max_size=5),
    TEXT,
    st.dictionaries(KEY, VALUE, max_size=5),
    st.none() | WORD,
    st.booleans(),
)
def test_what_is_formatted_is_read_back(command, middle, last, tags, source, trailing):
    line = parse_line(format_line(command, *middle, last, tags=tags, source=source, trailing=trailing)[:-2])
    assert (line.command, line.params, line.source) == (command, (*middle, last), source)
    assert line.tags == tags


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=4), st.none() | st.text(max_size=10))
def test_a_made_line_is_one_line_or_a_refusal(command, params, source):
    try:
        made = format_line(command, *params, source=source)
    except LineError:
        return
    assert made.endswith(b"\r\n")
    assert made.count(b"\n") == made.count(b"\r") == 1
    assert b"\0" not in made
    read = parse_line(made[:-2])
    assert (read.command, read.params, read.source) == (command.upper(), tuple(params), source)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_line_or_a_refusal(data):
    try:
        line = parse_line(data)
    except LineError:
        return
    dict(line.tags)
    assert line.raw == data
    assert line.nick is None or line.source is not None
