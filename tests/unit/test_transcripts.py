"""Transcripts of the documents: what varies from run to run is left out, what a program says is not."""

from pathlib import Path

import pytest

from serverchange.cli.transcripts import (
    DOCUMENTS,
    LINE_MAX,
    Step,
    folded,
    normalised,
    normalised_demo,
    read_transcripts,
    replaced,
)

ROOT = Path(__file__).parents[2]
TEXT = """Before.

<!-- transcript:one -->
```
$ serverchange where forsen
forsen main
$ serverchange status
old
```
<!-- /transcript:one -->

Between.

<!-- transcript:two -->
```
$ make demo
kept
```
<!-- /transcript:two -->
"""


def test_every_document_that_is_recorded_has_a_transcript_with_output() -> None:
    for name in DOCUMENTS:
        found = read_transcripts((ROOT / name).read_text("utf-8"))
        assert found, name
        assert all(step.output for steps in found.values() for step in steps), name


def test_every_code_block_with_a_prompt_is_a_recorded_transcript() -> None:
    documents = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    prompts = {path: path.read_text("utf-8").count("\n$ ") for path in documents}
    recorded = {
        path: sum(len(steps) for steps in read_transcripts(path.read_text("utf-8")).values()) for path in documents
    }
    assert prompts == recorded


def test_outputs_are_replaced_where_their_commands_stand() -> None:
    made = replaced(TEXT, lambda step: f"ran {step.command.split()[-1]}\n", frozenset({"one"}))

    assert read_transcripts(made) == {
        "one": [Step("serverchange where forsen", "ran forsen\n"), Step("serverchange status", "ran status\n")],
        "two": [Step("make demo", "kept\n")],
    }
    assert replaced(made, lambda step: step.output) == made
    assert made.startswith("Before.\n")


def test_a_long_line_of_json_is_folded_and_compared_as_if_it_were_not() -> None:
    line = "{" + ",".join(f'"member_{number}":"value"' for number in range(30)) + "}\n"

    assert max(len(part) for part in folded(line).splitlines()) <= LINE_MAX
    assert normalised(folded(line)) == normalised(line)


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ("since 2016-02-14T11:58:20.114Z", "since 2026-11-25T10:57:36.523744Z"),
        ("id 01a2125a-3437-728d-880d-8192a9fcc80c", "id 0152e0c1-8694-739b-aea5-966c26f8ad90"),
        ("0 records behind, 1,309 changes", "12 records behind, 9 changes"),
        ("at http://127.0.0.1:8080/", "at http://127.0.0.1:39021/"),
    ],
)
def test_what_varies_makes_no_transcript_stale(recorded: str, now: str) -> None:
    assert normalised(recorded) == normalised(now)


@pytest.mark.parametrize(
    ("recorded", "now"),
    [
        ("0 records behind", "0 records late"),
        ('"cluster":"aws"', '"cluster":"main"'),
        ("streamer_000010 main", "streamer_000011 main"),
        ('"verified_at":"2016-02-14T11:58:20Z"', '"verified_at":null'),
        ("a\tb", "a b"),
    ],
)
def test_what_a_program_says_differently_makes_it_stale(recorded: str, now: str) -> None:
    assert normalised(recorded) != normalised(now)


def test_of_a_demo_the_kinds_of_lines_and_the_table_are_compared() -> None:
    recorded = (
        "   0.0 s  making topics\n"
        "   5.1 s  412 of 500 channels are joined where they live\n"
        "   9.0 s  staff: aws 10, main 490; 10 moves, 5 handovers, chat 3/4\n"
        "  14.0 s  everyone: aws 500; 810 moves, ? handovers, chat 99/99\n"
        "│ lost lines │ 4: 3 before the move, 1       │\n"
        "│            │ during the handover           │\n"
        "OK all 12 checks hold\n"
    )
    now = (
        "   0.2 s  making topics\n"
        "   7.0 s  staff: main 60; 0 moves, 0 handovers, chat 0/0\n"
        "│ lost lines │ 0: 0 before the move, 0 during the handover │\n"
        "OK all 12 checks hold\n"
    )
    assert normalised_demo(recorded) == normalised_demo(now)
    assert normalised_demo(recorded) != normalised_demo(now.replace("before", "after"))
    assert normalised_demo(recorded) != normalised_demo(now.replace("moves", "steps"))
    assert normalised_demo(recorded) != normalised_demo(now.replace("OK all", "FAILED all"))
