# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange channels`: says which channels a service wants, and an operator's word on where one is.

Writes events to `channel-events` itself (WRITE on that topic is the trust boundary), so it works with the API down.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from serverchange.cli.faults import Fault
from serverchange.cli.output import ApiOption, Output, answering, note, quiet_logs

if TYPE_CHECKING:
    from serverchange.events import Channel, ChannelEvent, ChannelKind

app = typer.Typer(help="Say which channels are wanted, and by whom.", no_args_is_help=True)

FAULTS_SHOWN_MAX: Final = 10

Names = Annotated[list[str], typer.Argument(help="Channels, with or without #.", metavar="CHANNEL...")]
ServiceOption = Annotated[str, typer.Option(help="Who wants them; a channel is tracked while any service does.")]
LabelOption = Annotated[list[str] | None, typer.Option("--label", help="A label, e.g. partner; may be repeated.")]
AccountOption = Annotated[str | None, typer.Option(help="Login of the account that is to join them.")]
ThroughApiOption = Annotated[
    bool,
    typer.Option(
        "--through-api",
        help="Ask the state API to write them; the token in SERVERCHANGE_CLIENT_TOKEN names the service.",
    ),
]
TOKEN_VARIABLE: Final = "SERVERCHANGE_CLIENT_TOKEN"  # noqa: S105  (the name of a variable)
LIST_COLUMNS: Final = ("channel", "cluster", "status", "since", "services", "labels")


@app.command(epilog="Example: serverchange channels add forsen caedrel --service my-bot --label partner")
@answering
def add(
    out: Output,
    names: Names,
    service: ServiceOption = "cli",
    label: LabelOption = None,
    group: Annotated[bool, typer.Option("--group", help="Group rooms: they never move.")] = False,
    account: AccountOption = None,
    through_api: ThroughApiOption = False,
    api: ApiOption = None,
) -> None:
    """Track channels for a service; said again, it replaces that service's labels."""
    from serverchange.events import ChannelKind

    kind = ChannelKind.GROUP if group else ChannelKind.CHAT
    if through_api:
        body = {"channels": parse_names(names), "labels": label or [], "kind": kind.value, "account": account}
        _send("POST", body, out, api)
        return
    wanted = [(channel, tuple(label or ())) for channel in parse_names(names)]
    _write([tracked(channel, service, labels, kind, account) for channel, labels in wanted], out)


@app.command(epilog="Example: serverchange channels remove forsen --service my-bot")
@answering
def remove(
    out: Output,
    names: Names,
    service: ServiceOption = "cli",
    through_api: ThroughApiOption = False,
    api: ApiOption = None,
) -> None:
    """A service no longer wants these channels; others may still."""
    from serverchange.events import ChannelUntracked, UntrackedData

    if through_api:
        _send("DELETE", {"channels": parse_names(names)}, out, api)
        return

    def event(channel: Channel) -> ChannelEvent:
        return ChannelUntracked(**_attributes(channel), data=UntrackedData(service=service))

    _write([event(channel) for channel in parse_names(names)], out)


@app.command("import", epilog="Example: serverchange channels import channels.txt --service my-bot")
@answering
def import_(
    out: Output,
    file: Annotated[Path, typer.Argument(help="One channel a line, labels after it; - reads standard input.")],
    service: ServiceOption = "cli",
    account: AccountOption = None,
) -> None:
    """Track all channels of a file (`forsen partner staff`, also with commas); one bad line and nothing is written."""
    from serverchange.events import ChannelKind

    wanted = parse_lines(_read_lines(file), str(file))
    events = [tracked(channel, service, labels, ChannelKind.CHAT, account) for channel, labels in wanted]
    _write(events, out)


@app.command(epilog="Example: serverchange channels pin forsen aws")
@answering
def pin(
    out: Output,
    name: Annotated[str, typer.Argument(metavar="CHANNEL")],
    cluster: Annotated[str, typer.Argument(help="Where it is, whatever the platform says.")],
) -> None:
    """Give an operator's word on where a channel is: it wins over all evidence until unpinned."""
    from serverchange.events import CLUSTER_PATTERN, ChannelPinned, Cluster, PinnedData

    if not re.fullmatch(CLUSTER_PATTERN, cluster):
        raise Fault(f"{cluster[:40]!r} is not a cluster: expected letters, digits, - and _ (lower case), e.g. aws")
    (channel,) = parse_names([name])
    event = ChannelPinned(**_attributes(channel), data=PinnedData(cluster=Cluster(cluster)))
    _write([event], out)


@app.command(epilog="Example: serverchange channels unpin forsen")
@answering
def unpin(out: Output, name: Annotated[str, typer.Argument(metavar="CHANNEL")]) -> None:
    """Take the operator's word back; a lookup decides."""
    from serverchange.events import ChannelUnpinned, UnpinnedData

    (channel,) = parse_names([name])
    _write([ChannelUnpinned(**_attributes(channel), data=UnpinnedData())], out)


@app.command("list", epilog="Example: serverchange channels list --cluster main --label partner --json")
@answering
def list_(
    out: Output,
    cluster: Annotated[str | None, typer.Option(help="Only channels there.")] = None,
    label: Annotated[str | None, typer.Option(help="Only channels with this label.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.", show_default=False)] = None,
    api: ApiOption = None,
) -> None:
    """List the tracked channels in order of name, by the state API; --json, too, prints one object a line."""
    from serverchange.cli.api import Api

    found = itertools.islice(Api(api).pages("/channels", "channels", cluster=cluster, label=label), limit)
    out.rows(LIST_COLUMNS, found)


def tracked(
    channel: Channel, service: str, labels: tuple[str, ...], kind: ChannelKind, account: str | None
) -> ChannelEvent:
    """Return the event that a service wants a channel.

    Raises:
        Fault: the service, a label or the account is not one; names the field.
    """
    from pydantic import ValidationError

    from serverchange.events import ChannelTracked, TrackedData, describe_error

    try:
        data = TrackedData(service=service, labels=labels, kind=kind, account=account)
    except ValidationError as error:
        raise Fault(f"{channel}: {describe_error(error)}") from error
    return ChannelTracked(**_attributes(channel), data=data)


def parse_lines(lines: Iterable[str], place: str) -> list[tuple[Channel, tuple[str, ...]]]:
    """Return the (channel, labels) of an import file; empty lines are skipped.

    Raises:
        Fault: with every line that is wrong, up to `FAULTS_SHOWN_MAX`.
    """
    from serverchange.events import Rejected, parse_channel

    found: list[tuple[Channel, tuple[str, ...]]] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = re.split(r"[,;\s]+", line.strip().strip(",;"))
        if not words[0]:
            continue
        try:
            found.append((parse_channel(words[0]), tuple(word.lower() for word in words[1:])))
        except Rejected as error:
            faults.append(f"{place}:{number}: {error}")
    if faults:
        more = len(faults) - FAULTS_SHOWN_MAX
        shown = [*faults[:FAULTS_SHOWN_MAX], *([f"and {more} more"] if more > 0 else [])]
        raise Fault("nothing was written:\n" + "\n".join(shown))
    return found


def publish(events: Sequence[ChannelEvent]) -> list[tuple[int, int]]:
    """Append the events and return their (partition, offset), in order.

    Raises:
        PublishError: Kafka did not acknowledge one of them; writing all again does no harm.
        UnavailableFault: no broker answers.
    """
    from serverchange.adapters.kafka.publisher import EventPublisher
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.reach import check_kafka
    from serverchange.topics import CHANNEL_EVENTS

    quiet_logs()
    settings = load_settings().kafka
    check_kafka(settings)

    async def write() -> list[tuple[int, int]]:
        async with EventPublisher(settings, client_id="serverchange-cli") as publisher:
            return await publisher.publish_all(CHANNEL_EVENTS, [(one.subject, one.to_record()) for one in events])

    return asyncio.run(write())


def _write(events: Sequence[ChannelEvent], out: Output) -> None:
    places = publish(events)
    written = [
        {"channel": event.subject, "id": event.id, "partition": partition, "offset": offset}
        for event, (partition, offset) in zip(events, places, strict=True)
    ]
    count = len(written)
    out.answer(written, entries=written, show=lambda: note(f"{count} {'event' if count == 1 else 'events'} written"))


def parse_names(names: Iterable[str]) -> list[Channel]:
    """Return the channels that people typed, each once.

    Raises:
        Fault: one of them is not a channel.
    """
    from serverchange.events import Rejected, parse_channel

    try:
        return list(dict.fromkeys(parse_channel(name) for name in names))
    except Rejected as error:
        raise Fault(str(error)) from error


def _send(method: str, body: dict[str, object], out: Output, api: str | None) -> None:
    """Have the state API write the events, with the token of the environment: argv is for everyone to see."""
    from serverchange.cli.api import Api

    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise Fault(f"set {TOKEN_VARIABLE} to a write token of the state API (serverchange up keeps one in api-token)")
    answer = Api(api).send(method, "/channels", body, token=token)
    out.answer(answer, show=lambda: note(f"{answer['accepted']} accepted at {answer['position']}"))


def _read_lines(file: Path) -> list[str]:
    if str(file) == "-":
        return sys.stdin.read().splitlines()
    try:
        return file.read_text("utf-8").splitlines()
    except OSError as error:
        raise Fault(f"cannot read {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Fault(f"{file} is not UTF-8 text (byte {error.start})") from error


def _attributes(channel: Channel) -> dict[str, object]:
    from datetime import UTC, datetime

    import uuid_utils

    return {
        "id": str(uuid_utils.uuid7()),
        "source": "serverchange/cli",
        "time": datetime.now(UTC),
        "subject": channel,
    }
