"""The codec against the community's vectors (irc-parser-tests) and against reports from the field."""

import pytest
from parser_tests import data as vectors

from serverchange.irc.line import (
    MAX_BODY_BYTES,
    MAX_RECEIVED_BYTES,
    MAX_TAGS_BYTES,
    PACKED_LINE_BYTES,
    Line,
    LineBuffer,
    LineError,
    format_channel_lines,
    format_line,
    parse_line,
)


@pytest.mark.parametrize("case", vectors.msg_split["tests"], ids=lambda case: case["input"])
def test_a_line_splits_as_the_community_vectors_say(case):
    atoms = case["atoms"]
    line = parse_line(case["input"].encode())
    assert dict(line.tags) == {key: value or "" for key, value in (atoms.get("tags") or {}).items()}
    assert line.source == atoms.get("source")
    assert line.command == atoms["verb"].upper()
    assert line.params == tuple(atoms.get("params") or ())
    assert line.raw == case["input"].encode()


@pytest.mark.parametrize("case", vectors.msg_join["tests"], ids=lambda case: case["desc"])
def test_a_line_joins_as_the_community_vectors_say(case):
    atoms = case["atoms"]
    verb = atoms["verb"]
    made = format_line(verb, *atoms.get("params", ()), tags=atoms.get("tags"), source=atoms.get("source"))
    wanted = {match.replace(verb, verb.upper(), 1).encode() + b"\r\n" for match in case["matches"]}
    assert made in wanted


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (rb"@k=a\\sb X", r"a\sb"),
        (rb"@k=\\n X", r"\n"),
        (rb"@k=a\bc X", "abc"),
        (rb"@k=x\ X", "x"),
        (rb"@k=tail\s X", "tail "),
        (b"@k;k=;k=v X", "v"),
        (b"@k=v;k X", ""),
    ],
)
def test_a_tag_value_is_decoded_character_by_character(raw, value):
    assert parse_line(raw).tags["k"] == value


def test_a_server_line_with_an_empty_nick_and_no_hash_is_parsed():
    line = parse_line(b"@room-id=53888434;tmi-sent-ts=1652206429374 :!@.tmi.twitch.tv CLEARCHAT ogprodigy")
    assert (line.command, line.params, line.nick, line.channel) == ("CLEARCHAT", ("ogprodigy",), "", None)
    assert not line.is_from_server()


@pytest.mark.parametrize("text", [b"PRIVMSG #a :", b"PRIVMSG #a ::)", b"PRIVMSG #a :word", b"privmsg  #a  :\xff"])
def test_the_bytes_of_a_line_are_kept_as_they_came(text):
    assert parse_line(text).raw == text


@pytest.mark.parametrize(
    ("raw", "params"),
    [
        (b":x MODE #tckk +n ", ("#tckk", "+n")),
        (b":s 432  #momo :Erroneous", ("#momo", "Erroneous")),
        (b":s  432 a ", ("a",)),
        (b"@a=b   :s  MODE   #x", ("#x",)),
    ],
)
def test_spare_spaces_do_not_kill_a_line(raw, params):
    assert parse_line(raw).params == params


@pytest.mark.parametrize(
    ("source", "nick"),
    [
        ("forsen!forsen@forsen.tmi.twitch.tv", "forsen"),
        ("forsen@host", "forsen"),
        ("forsen", "forsen"),
        ("tmi.twitch.tv", None),
        ("!@.tmi.twitch.tv", ""),
    ],
)
def test_the_nick_is_what_stands_before_the_host(source, nick):
    assert parse_line(f":{source} X".encode()).nick == nick


def test_only_the_bare_server_name_speaks_for_the_server():
    assert parse_line(b":tmi.twitch.tv SERVERCHANGE #x").is_from_server()
    assert not parse_line(b":evil!e@e SERVERCHANGE #x").is_from_server()
    assert not parse_line(b":tmi.twitch.tv!a@b SERVERCHANGE #x").is_from_server()
    assert not parse_line(b"SERVERCHANGE #x").is_from_server()


def test_lines_are_values():
    assert parse_line(b"@a=1 X") == parse_line(b"@a=1 X")
    assert len({parse_line(b"X"), parse_line(b"X"), parse_line(b"Y")}) == 2


@pytest.mark.parametrize(
    ("raw", "where"),
    [
        (b"", "command"),
        (b"   ", "command"),
        (b":source", "command"),
        (b"@a=b", "command"),
        (b"PRIV-MSG #a", "command"),
        (b"12 a", "command"),
        (b"A\rB", "line"),
        (b"A\nB", "line"),
        (b"A\0B", "line"),
        (b"@" + b"a" * (MAX_TAGS_BYTES - 1) + b" X", "tags"),
        (b"X " + b"a" * MAX_BODY_BYTES, "line"),
    ],
)
def test_what_is_no_line_is_refused_with_its_place(raw, where):
    with pytest.raises(LineError) as caught:
        parse_line(raw)
    assert caught.value.where == where


def test_the_longest_tags_are_read():
    assert len(parse_line(b"@" + b"a" * (MAX_TAGS_BYTES - 2) + b" X").tags) == 1


@pytest.mark.parametrize("text", ["#a\r\nQUIT", "#a\nPRIVMSG #b :hi", "#a\0b"])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: format_line("X", text, "y"),
        lambda text: format_line("X", "y", text),
        lambda text: format_line("X", source=text),
        format_line,
    ],
    ids=["first", "last", "source", "command"],
)
def test_no_text_can_smuggle_a_second_line(text, make):
    with pytest.raises(LineError):
        make(text)


def test_a_line_end_in_a_tag_is_escaped():
    assert format_line("X", tags={"k": "a\r\nQUIT"}) == b"@k=a\\r\\nQUIT X\r\n"


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("JOIN", ("#a b", "c")),
        ("JOIN", ("", "c")),
        ("JOIN", (":a", "c")),
        ("JO IN", ()),
        ("", ()),
        ("PRIVMSG", ("#a", "\ud800")),
        ("PRIVMSG", ("#a", "x" * MAX_BODY_BYTES)),
    ],
)
def test_a_line_that_a_peer_would_read_otherwise_is_never_made(command, params):
    with pytest.raises(LineError):
        format_line(command, *params)


def test_the_longest_line_to_the_server_is_made():
    made = format_line("PRIVMSG", "#a", "x" * (MAX_BODY_BYTES - len("PRIVMSG #a :\r\n")), trailing=True)
    assert len(made) == MAX_BODY_BYTES


def test_a_colon_is_written_on_request():
    assert format_line("PONG", "go-twitch-irc", trailing=True) == b"PONG :go-twitch-irc\r\n"
    assert format_line("PONG", "go-twitch-irc") == b"PONG go-twitch-irc\r\n"


@pytest.mark.parametrize("key", ["", "a b", "a=b", "a;b", "ä"])
def test_a_bad_tag_key_is_refused(key):
    with pytest.raises(LineError):
        format_line("X", tags={key: "v"})


@pytest.mark.parametrize(
    ("param", "channel"),
    [
        ("#forsen", "forsen"),
        ("#FORSEN", "forsen"),
        ("forsen", None),
        ("#", None),
        ("##a", None),
        ("#a,#b", None),
        ("#" + "a" * 26, None),
        ("#\u212a", None),
        ("#İ", None),
    ],
)
def test_a_line_names_a_channel_or_none(param, channel):
    assert parse_line(f"X {param}".encode()).channel == channel


def test_channels_are_packed_into_short_lines_in_order():
    channels = [f"channel_number_{number:05}" for number in range(100)]
    lines = format_channel_lines("JOIN", channels)
    assert len(lines) == 5
    assert max(map(len, lines)) <= PACKED_LINE_BYTES + 2
    named = [name for line in lines for name in line.removeprefix(b"JOIN ").strip().decode().split(",")]
    assert named == ["#" + channel for channel in channels]


@pytest.mark.parametrize("channel", ["a,#b", "a b", "", "a\r\nQUIT", "#a"])
def test_no_name_can_smuggle_another_channel(channel):
    with pytest.raises(LineError):
        format_channel_lines("JOIN", [channel])


def test_every_line_end_of_the_field_ends_a_line():
    assert LineBuffer().receive_data(b"a\r\nb\nc\r\r\n\r\n\nd") == [b"a", b"b", b"c"]


def test_a_line_over_the_limit_is_refused_in_bounded_memory_and_the_stream_goes_on():
    buffer = LineBuffer()
    for _ in range(100):
        assert buffer.receive_data(b"x" * 1000) == []
        assert len(buffer._partial) <= MAX_RECEIVED_BYTES
    assert buffer.refused_lines == 1
    assert buffer.receive_data(b"end\r\nnext\r\n") == [b"next"]
    assert buffer.refused_lines == 1


def test_a_line_of_just_the_limit_is_taken():
    line = b"x" * (MAX_RECEIVED_BYTES - 2)
    buffer = LineBuffer()
    assert buffer.receive_data(line + b"\r\n") == [line]
    assert buffer.receive_data(b"x" + line + b"\r\nafter\n") == [b"after"]
    assert buffer.refused_lines == 1


def test_a_line_shows_only_its_bytes():
    assert repr(parse_line(b"@a=1 X")) == "Line(raw=b'@a=1 X')"
    assert isinstance(parse_line(b"X"), Line)
