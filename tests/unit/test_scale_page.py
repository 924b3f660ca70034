"""The arithmetic of docs/scale.md follows from the measured figures that it shows."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serverchange.tracker.budget import AccountClass, published_limits, what_if

PAGE = (Path(__file__).parents[2] / "docs/scale.md").read_text("utf-8")
FIGURES: dict[str, float] = json.loads(re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)[0])
ORDINARY, VERIFIED = published_limits(AccountClass.ORDINARY), published_limits(AccountClass.VERIFIED)
SIZES = (1_000_000, 10_000_000, 100_000_000)
RECORDS_A_CHANNEL = 3
REQUESTS_PER_SECOND = 20
NAMES_A_SCAN = 100
CHANNEL_MAP_BYTES = 300
"""Beside its name; tests/property/test_client_placed.py holds the SDK to it."""


def size(count: float) -> str:
    """Bytes for people, in two significant digits."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{_two_digits(count / factor)} {unit}"
    return f"{count:.0f} B"


def span(seconds: float) -> str:
    """Seconds for people, in two significant digits."""
    for unit, factor in (("d", 86_400.0), ("h", 3_600.0), ("min", 60.0)):
        if seconds >= 2 * factor:
            return f"{_two_digits(seconds / factor)} {unit}"
    return f"{_two_digits(seconds)} s"


def _two_digits(value: float) -> str:
    digits = max(0, 1 - math.floor(math.log10(value)))
    return f"{round(value, 1 - math.floor(math.log10(value))):,.{digits}f}"


def rows() -> Iterator[str]:
    """Yield the table's rows, each from the figures."""
    tables = sum(FIGURES[f"{name}_bytes_a_row"] for name in ("channel_state", "cluster_change", "channel_freshness"))
    log = RECORDS_A_CHANNEL * FIGURES["log_bytes_a_record"]
    yield _row("the log once every channel is tracked and settled", [size(n * log) for n in SIZES])
    yield _row("each further record a channel", [size(n * FIGURES["log_bytes_a_record"]) for n in SIZES])
    yield _row("`cluster-changes`, compacted", [size(n * FIGURES["changes_bytes_a_record"]) for n in SIZES])
    yield _row("tables with one change a channel", [size(n * tables) for n in SIZES])
    yield _row("memory of all pollers together", [size(n * FIGURES["poller_bytes_a_channel"]) for n in SIZES])
    yield _row("memory of each `ChannelMap`, at most", [size(n * CHANNEL_MAP_BYTES) for n in SIZES])
    rate = FIGURES["rebuild_records_per_cpu_s"]
    yield _row("a rebuild with a processor of its own", [span(n * RECORDS_A_CHANNEL / rate) for n in SIZES])
    yield _row("links of 90 channels", [f"{what_if(n, VERIFIED).links:,}" for n in SIZES])
    for name, limits in (("ordinary", ORDINARY), ("verified", VERIFIED)):
        yield _row(
            f"JOINs of all, one {name} account",
            [span(what_if(n, limits).paced_s) for n in SIZES],
        )
    yield _row("asking for every channel once at 20 requests/s", [span(n / REQUESTS_PER_SECOND) for n in SIZES])
    scans = [span(n / NAMES_A_SCAN / REQUESTS_PER_SECOND) for n in SIZES]
    yield _row("asking who is live, 100 a request, at 20 requests/s", scans)
    yield _row("channels a partition of 48", [f"{n / 48:,.0f}" for n in SIZES])


def _row(name: str, cells: list[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


@pytest.mark.parametrize("row", [*rows()])
def test_a_row_follows_from_the_figures(row: str) -> None:
    assert row in PAGE.splitlines()


def test_every_figure_was_measured_at_a_size_that_says_something() -> None:
    assert FIGURES["channels"] >= 50_000
    assert all(value > 0 for value in FIGURES.values())
