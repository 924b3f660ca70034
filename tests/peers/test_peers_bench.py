"""A small form of `serverchange bench peers`: one shard and a bot on TwitchIO, judged by the platform's ledger."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from serverchange.adapters.settings import Settings

pytest.importorskip("twitchio", reason="TwitchIO is not installed (it comes with the extra `dev`)")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from peers import Options, run_peers

SMALL = Options(channels=20, lines_per_second=60, close_s=(1.5, 2.0), overlap_s=1.0, watch_s=3.0, quiet_s=2.0)


@pytest.mark.slow
async def test_ours_loses_nothing_in_a_reconnect_and_follows_a_move_that_leaves_a_peer_behind(
    settings: Settings, tmp_path: Path
) -> None:
    found = (await run_peers(SMALL, settings, tmp_path, print, names=("ours", "twitchio")))["contenders"]
    ours, peer = found["ours"], found["twitchio"]
    assert ours["unfinished"] == peer["unfinished"] == []
    assert ours["reconnect"]["lines_sent"] > 100
    assert (ours["reconnect"]["lost"], ours["reconnect"]["silent_s"]["max"], ours["duplicates"]) == (0, 0.0, 0)
    assert (ours["move"]["still_silent"], peer["move"]["still_silent"]) == (0, SMALL.channels)
    assert peer["move"]["lost"] == peer["move"]["lines_sent"] > 100
    assert ours["move"]["lost"] < peer["move"]["lost"]
    assert (ours["budget_violations"], peer["budget_violations"]) == (0, 0)
