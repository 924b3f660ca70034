"""The ledger: order, queries, waiting, and the columns of chat lines."""

from __future__ import annotations

import asyncio

import pytest

from serverchange.events import Channel, Cluster
from serverchange.simulator.ledger import EntryKind, Ledger, LedgerFullError, LineLedger, SentLine

FORSEN, MAIN = Channel("forsen"), Cluster("main")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def ledger() -> Ledger:
    return Ledger(Clock(), lambda: 1_000_000.0, 10)


async def test_waiting_finds_what_has_happened_already() -> None:
    book = ledger()
    entry = book.record(EntryKind.MOVED, channel=FORSEN)
    assert await book.wait_for(EntryKind.MOVED, channel="forsen") is entry


async def test_waiting_ends_when_it_happens() -> None:
    book = ledger()
    waiter = asyncio.create_task(book.wait_for(EntryKind.JOINED, link=2))
    await asyncio.sleep(0)
    book.record(EntryKind.JOINED, link=1)
    await asyncio.sleep(0)
    entry = book.record(EntryKind.JOINED, link=2)
    assert await waiter is entry


async def test_waiting_from_a_sequence_on_passes_over_what_was_before() -> None:
    book = ledger()
    book.record(EntryKind.MOVED, channel=FORSEN)
    since = len(book.entries)
    waiter = asyncio.create_task(book.wait_for(EntryKind.MOVED, since=since))
    await asyncio.sleep(0)
    assert book.record(EntryKind.MOVED, channel=FORSEN) is await waiter


async def test_waiting_in_vain_says_what_for() -> None:
    book = Ledger(asyncio.get_running_loop().time, lambda: 0.0, 10)
    with pytest.raises(TimeoutError, match="no moved, channel=forsen within 0"):
        await book.wait_for(EntryKind.MOVED, channel="forsen", timeout_s=0.01)


async def test_waiting_for_a_condition_looks_again_after_each_batch_of_lines() -> None:
    book = ledger()
    waiter = asyncio.create_task(book.wait_until(lambda: len(book.lines) == 1))
    await asyncio.sleep(0)
    book.lines.append(FORSEN, book.lines.next_number(FORSEN), 1.0, MAIN, ())
    book.notify()
    await waiter


def test_find_matches_kinds_and_fields() -> None:
    book = ledger()
    book.record(EntryKind.MOVED, channel=FORSEN)
    book.record(EntryKind.JOINED, channel=FORSEN, link=1)
    book.record(EntryKind.JOINED, channel=FORSEN, link=2)
    assert [entry.sequence for entry in book.find(EntryKind.JOINED, link=2)] == [2]
    assert [entry.sequence for entry in book.find({EntryKind.MOVED, EntryKind.JOINED}, since=1)] == [1, 2]
    assert book.count((), channel=FORSEN) == 3


def test_violations_are_counted_by_kind() -> None:
    book = ledger()
    book.record(EntryKind.VIOLATION, detail="join-budget")
    book.record(EntryKind.VIOLATION, detail="join-budget")
    assert book.violations == {"join-budget": 2}


def test_monotonic_instants_become_wall_time() -> None:
    assert ledger().wall_s(101.5) == 1_000_001.5


def test_lines_come_back_as_they_were_put_in() -> None:
    lines = LineLedger(10)
    audience = (1, 2)
    for _ in range(2):
        lines.append(FORSEN, lines.next_number(FORSEN), 5.0, MAIN, audience)
    assert list(lines.since(1)) == [SentLine(FORSEN, 2, 5.0, MAIN, audience)]
    assert lines.last_number(FORSEN) == 2


def test_a_full_ledger_refuses_lines_loudly() -> None:
    lines = LineLedger(1)
    lines.append(FORSEN, lines.next_number(FORSEN), 5.0, MAIN, ())
    with pytest.raises(LedgerFullError, match="ledger_lines_max"):
        lines.next_number(FORSEN)
