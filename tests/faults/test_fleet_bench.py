"""A small form of `serverchange bench fleet`: real processes, every line numbered, judged by the platform's ledger."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from serverchange.adapters.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fleet import Options, run_fleet
from fleet_kills import run_kills

pytestmark = pytest.mark.slow

SMALL = Options(
    channels=120,
    processes=2,
    lines_per_second=60,
    channels_per_link=20,
    close_s=(3.0, 5.0),
    overlap_s=1.0,
    wave_interval_s=1.0,
    calm_s=0.0,
)


async def test_no_line_is_lost_or_doubled_in_reconnects_and_a_rolling_restart(
    settings: Settings, tmp_path: Path
) -> None:
    found = await run_fleet(SMALL, settings, tmp_path, print)
    assert found["unfinished"] == []
    assert found["lines_sent"] > 500
    assert (found["lost"], found["duplicates"]) == (0, 0)
    assert (found["budget_violations"], found["unjoined_channels"]) == (0, 0)
    assert found["copies_dropped_by_reader"] > 0, "two sides of each handover ran side by side"
    assert found["restart_join_ratio"] == 1.0, "each channel is joined once more by the deploy, not twice"


async def test_accounts_that_are_full_are_moved_and_deployed_within_the_platforms_limits(
    settings: Settings, tmp_path: Path
) -> None:
    full = replace(SMALL, channels=20, accounts=2, channels_per_account=10, channels_per_link=5, lines_per_second=20)
    found = await run_fleet(full, settings, tmp_path, print)
    assert found["unfinished"] == []
    assert (found["lost"], found["duplicates"]) == (0, 0)
    assert (found["budget_violations"], found["unjoined_channels"]) == (0, 0), "the limit of channels is a budget, too"
    assert found["restart_join_ratio"] == 1.0


async def test_a_killed_process_leaves_nobody_elses_channel(settings: Settings, tmp_path: Path) -> None:
    options = replace(SMALL, channels=40, processes=3, seed=1)
    found = await run_kills(options, settings, tmp_path, print, kills=1)
    assert found["unfinished"] == []
    assert found["left_without_reader"] > 0
    assert (found["unexplained"], found["late"], found["unjoined_channels"]) == (0, 0, 0)
    assert found["two_owners_s"] <= found["two_owners_bound_s"]
    assert found["budget_violations"] == 0
