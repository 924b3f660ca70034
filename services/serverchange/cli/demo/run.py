"""Puts the demo in order: start, track, join, run the script, come to rest, collect, judge, report."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from serverchange.adapters.process import ExitCode
from serverchange.cli.demo.checks import Check, Findings, check, judge
from serverchange.cli.demo.collector import (
    Sources,
    collect,
    track_all,
    wait_at_rest,
    wait_joined_or_fail,
)
from serverchange.cli.demo.facts import Facts
from serverchange.cli.demo.ledger import Platform, SimulatedChannel
from serverchange.cli.demo.options import ACCOUNT, PARTITIONS, DemoOptions
from serverchange.cli.demo.progress import Progress
from serverchange.cli.demo.report import print_report, to_json
from serverchange.cli.demo.watching import ChatWatch, StateApi, Watcher
from serverchange.cli.faults import Fault, UnavailableFault
from serverchange.cli.fleet import Fleet, WriteToken, simulator_environment
from serverchange.cli.output import print_json, quiet_logs
from serverchange.cli.stopping import run_until_stopped
from serverchange.simulator.addresses import Addresses

CHAT_LINES_PER_SECOND: Final = 200.0
SCRIPT_SLACK: Final = 2.0
SCRIPT_GRACE_S: Final = 30.0
"""The script waits for streams to end; one that takes twice as long and this is stuck."""

TOKEN: Final = WriteToken("demo", "this-token-opens-the-demo-alone")

Disturbance = Callable[[Fleet], Coroutine[Any, Any, None]]
"""What tests do to a running demo, from the script's begin on; it is awaited before the run comes to rest."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a demo ended."""

    findings: Findings
    checks: list[Check]

    @property
    def good(self) -> bool:
        """Whether every check holds."""
        return all(one.passed for one in self.checks)


def run_demo(options: DemoOptions) -> int:
    """Run the demo and return its exit code: 0 only if every check holds."""
    quiet_logs()
    return run_until_stopped(_run(options))


async def _run(options: DemoOptions) -> int:
    console = Console(stderr=True)
    with Progress(console, options.seconds) as progress:
        outcome = await demonstrate(options, progress)
    print_report(console if options.as_json else Console(), outcome.findings, outcome.checks, options)
    if options.as_json:
        print_json(to_json(outcome.findings, outcome.checks, options))
    return int(ExitCode.OK if outcome.good else ExitCode.CHECK_FAILED)


async def demonstrate(options: DemoOptions, progress: Progress, disturb: Disturbance | None = None) -> Outcome:
    """Run a whole demo and return how it ended.

    Raises:
        UnavailableFault: a part did not start, was given up, or does not answer at the end.
        EmbeddedError: Kafka or PostgreSQL cannot be started here.
    """
    started_s = time.monotonic()
    with _data_folder(options, progress) as folder:
        async with Fleet(folder, partitions=PARTITIONS, tell=progress.say) as fleet:
            facts = await _or_failure(fleet, _play(options, progress, fleet, disturb))
            progress.close()
            progress.say("stopping")
        findings = judge(replace(facts, elapsed_s=time.monotonic() - started_s))
    return Outcome(findings, check(findings))


async def _play(options: DemoOptions, progress: Progress, fleet: Fleet, disturb: Disturbance | None) -> Facts:
    progress.say("starting Kafka and PostgreSQL")
    await fleet.start_servers()
    addresses = await fleet.start_simulator(options.simulator)
    fleet.add_environment(simulator_environment(addresses, account=ACCOUNT) | options.service_environment)
    progress.say("starting poller, IRC listener, materializer, reconnector and state API")
    await fleet.start_services(token=TOKEN)
    async with _sources(fleet, addresses) as sources:
        channels = await sources.platform.channels()
        progress.say(f"tracking {len(channels)} channels")
        await track_all(fleet.kafka, channels)
        await wait_joined_or_fail(sources, [one.name for one in channels], progress.say)
        progress.say(f"all joined; two weeks begin, {options.seconds:g} s long")
        return await _migrate(options, progress, fleet, sources, channels, disturb)


async def _migrate(
    options: DemoOptions,
    progress: Progress,
    fleet: Fleet,
    sources: Sources,
    channels: Sequence[SimulatedChannel],
    disturb: Disturbance | None,
) -> Facts:
    names = [one.name for one in channels]
    watcher = Watcher(
        sources.platform, sources.api, sources.chat, names, fleet.health_url("reconnector"), progress.show
    )
    started_s = time.time()
    await sources.platform.start_script()
    await sources.platform.set_chat_rate(CHAT_LINES_PER_SECOND)
    async with asyncio.TaskGroup() as tasks:
        if disturb is not None:
            tasks.create_task(disturb(fleet))
        await watcher.watch_script(timeout_s=options.seconds * SCRIPT_SLACK + SCRIPT_GRACE_S)
    await sources.platform.set_chat_rate(0.0)
    ended_s = time.time()
    progress.close()
    progress.say("the script is through; waiting until all is at rest")
    await wait_at_rest(sources, names, progress.say)
    progress.say("comparing everyone's word with the truth")
    facts = await collect(sources, channels)
    return replace(
        facts,
        started_s=started_s,
        ended_s=ended_s,
        mismatch_channel_seconds=watcher.mismatch_channel_seconds,
        api_unanswered=watcher.unanswered,
    )


@contextlib.asynccontextmanager
async def _sources(fleet: Fleet, addresses: Addresses) -> AsyncIterator[Sources]:
    platform, api = Platform(addresses.control_url), StateApi(fleet.api_url)
    chat = await asyncio.to_thread(ChatWatch, fleet.kafka)
    async with contextlib.AsyncExitStack() as closing:
        for close in (platform.close, api.close, chat.stop):
            closing.push_async_callback(close)
        yield Sources(platform, api, chat, fleet.kafka, fleet.postgres, frozenset({ACCOUNT}))


async def _or_failure(fleet: Fleet, play: Coroutine[Any, Any, Facts]) -> Facts:
    """Return what `play` returns, unless a part of the fleet is given up before.

    Raises:
        UnavailableFault: it was; says which and why.
    """
    playing = asyncio.create_task(play)
    failing = asyncio.create_task(fleet.failed.wait())
    try:
        await asyncio.wait({playing, failing}, return_when=asyncio.FIRST_COMPLETED)
        if playing.done():
            return playing.result()
        raise UnavailableFault(fleet.failure or "a process was given up")
    finally:
        for task in (playing, failing):
            task.cancel()
        await asyncio.gather(playing, failing, return_exceptions=True)


@contextlib.contextmanager
def _data_folder(options: DemoOptions, progress: Progress) -> Iterator[Path]:
    """Yield an empty folder; a temporary one is removed at the end unless it is to be kept.

    Raises:
        Fault: the folder asked for has something in it: an old log would be folded along.
    """
    if options.data_dir is not None:
        if options.data_dir.exists() and any(options.data_dir.iterdir()):
            raise Fault(f"{options.data_dir} is not empty: the demo needs a folder of its own, name a new one")
        yield options.data_dir
        progress.say(f"data and logs are in {options.data_dir}")
        return
    folder = Path(tempfile.mkdtemp(prefix="serverchange-demo-"))
    try:
        yield folder
    finally:
        if options.keep:
            progress.say(f"data and logs are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
