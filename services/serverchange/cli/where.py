# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange where`: where channels are, a few of the command line or any number from standard input."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from serverchange.cli.channels import parse_names
from serverchange.cli.faults import CheckFault, Fault
from serverchange.cli.output import ApiOption, Output, answering, note, print_rows

if TYPE_CHECKING:
    from serverchange.cli.api import Api
    from serverchange.events import Channel

WHERE_COLUMNS: Final = ("channel", "cluster", "status", "since", "verified_at", "version", "labels")

NAMES_A_REQUEST: Final = 2_000
"""Names of standard input that are asked for together: what the API reads from its tables at once."""


@answering
def where(
    out: Output,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="CHANNEL", help="With or without #.", show_default=False)
    ] = None,
    stdin: Annotated[
        bool, typer.Option("--stdin", help="Read the names from standard input, one a line; answers come as it goes.")
    ] = False,
    at: Annotated[str | None, typer.Option(help="As of then, e.g. 2016-02-14T12:00:00Z; for one channel.")] = None,
    api: ApiOption = None,
) -> None:
    """Say where channels are, and how sure that is. Exits with 1 if one is not known, with 2 if one is no name."""
    from serverchange.cli.api import Api

    if stdin:
        if names or at is not None:
            raise Fault("--stdin takes every name from standard input, and no --at")
        _where_stdin(sys.stdin.buffer, out, Api(api))
        return
    channels = parse_names(names or [])
    if not channels:
        raise Fault("name a channel, or have names read: serverchange where --stdin < names.txt")
    if at is not None:
        _where_at(channels, at, out, Api(api))
    else:
        _where_now(channels, out, Api(api))


def _where_now(channels: Sequence[Channel], out: Output, api: Api) -> None:
    answer = look_up(channels, api)
    by_name = {one["channel"]: one for one in answer["channels"]}
    found = [by_name[channel] for channel in channels if channel in by_name]

    def show() -> None:
        print_rows(WHERE_COLUMNS, [[one[column] for column in WHERE_COLUMNS] for one in found])
        _note_freshness(answer)

    out.answer(answer, entries=found, show=show)
    if answer["unknown"]:
        unknown = answer["unknown"]
        raise CheckFault(
            f"nobody ever tracked {', '.join(unknown)}. Track them: serverchange channels add {' '.join(unknown)}"
        )


def _where_at(channels: Sequence[Channel], at: str, out: Output, api: Api) -> None:
    if len(channels) != 1:
        raise Fault("--at answers for one channel at a time")
    out.fields(api.get(f"/channels/{channels[0]}", at=at))


def _where_stdin(lines: Iterable[bytes], out: Output, api: Api) -> None:
    names = NamedLines(lines)
    out.rows(WHERE_COLUMNS, names.answers(lambda channels: look_up(channels, api)))
    if names.freshness is not None:
        _note_freshness(names.freshness)
    told = [f"{names.unknown} of {names.lines} lines name a channel that nobody ever tracked"] if names.unknown else []
    if names.bad:
        raise Fault("; ".join([f"{names.bad} of {names.lines} lines are no channel's name", *told]))
    if told:
        raise CheckFault(f"{told[0]}. Track channels: serverchange channels import FILE")


def look_up(channels: Sequence[Channel], api: Api) -> dict[str, Any]:
    """Return the API's answer for these channels, in whatever order it has them."""
    answer: dict[str, Any] = api.send("POST", "/channels:lookup", {"channels": list(channels)})
    return answer


@dataclass(slots=True)
class NamedLines:
    """Names, one a line, as they come; says on standard error which line has none, or one that is not known.

    Attributes:
        lines: Read so far, empty ones not counted.
        bad: Lines that are no channel's name.
        unknown: Lines with a channel that nobody ever tracked.
        freshness: The newest answer, for how fresh it is; None before the first.
    """

    source: Iterable[bytes]
    lines: int = 0
    bad: int = 0
    unknown: int = 0
    freshness: Mapping[str, Any] | None = None

    def answers(self, ask: Callable[[Sequence[Channel]], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield what is known, a line's after the other's; a name that stands there twice is answered twice."""
        named = self._read()
        while portion := list(itertools.islice(named, NAMES_A_REQUEST)):
            answer = ask(list(dict.fromkeys(channel for _, channel in portion)))
            self.freshness = answer
            known = {one["channel"]: one for one in answer["channels"]}
            for number, channel in portion:
                if channel in known:
                    yield known[channel]
                else:
                    self.unknown += 1
                    note(f"line {number}: nobody ever tracked {channel}")

    def _read(self) -> Iterator[tuple[int, Channel]]:
        from serverchange.events import Rejected, parse_channel

        for number, line in enumerate(self.source, start=1):
            if not (text := line.decode("utf-8", "replace").strip()):
                continue
            self.lines += 1
            try:
                channel = parse_channel(text)
            except Rejected as error:
                self.bad += 1
                note(f"line {number}: {error}")
            else:
                yield number, channel


def _note_freshness(answer: Mapping[str, Any]) -> None:
    behind = answer["behind_records"]
    lag = "Kafka is away" if behind is None else f"{behind} records behind"
    note(f"as of {answer['as_of'] or 'never yet'}, {lag}")
