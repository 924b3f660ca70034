"""``serverchange bench exposure_grid``: is the schedule ever worse than round-robin? Thirty-seven worlds say.

Each world differs from the usual one in rates, sizes, habits, lags, batches, rollbacks or faults; the last ones are
built against the schedule: people without habits, batches without order, long lags, many breaks, few requests.

    python benchmarks/exposure_grid.py --json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from exposure_play import play
from exposure_policies import make_policy
from exposure_world import Scenario, build_world

USUAL = Scenario(channels=1_000, requests_per_s=0.1)
HIDDEN = replace(USUAL, order="hidden")
RANDOM = replace(USUAL, habits="random")
AGAINST = replace(HIDDEN, habits="random", interruptions=0.5, lag_median_s=300.0)

GRID: dict[str, Scenario] = {
    "usual": USUAL,
    "hidden order": HIDDEN,
    "random habits": RANDOM,
    "random habits, hidden order": replace(RANDOM, order="hidden"),
    "a tenth of the requests": replace(USUAL, requests_per_s=0.01),
    "a tenth of the requests, hidden order": replace(HIDDEN, requests_per_s=0.01),
    "four times the requests": replace(USUAL, requests_per_s=0.4),
    "four times the requests, hidden order": replace(HIDDEN, requests_per_s=0.4),
    "300 channels": USUAL.scaled(300),
    "300 channels, hidden order": HIDDEN.scaled(300),
    "3,000 channels": USUAL.scaled(3_000),
    "an API without lag": replace(USUAL, lag_median_s=0.5),
    "an API five minutes late": replace(USUAL, lag_median_s=300.0),
    "an API five minutes late, hidden order": replace(HIDDEN, lag_median_s=300.0),
    "streaming channels at a later sweep": replace(USUAL, deferral="sweep"),
    "streaming channels at a later sweep, hidden order": replace(HIDDEN, deferral="sweep"),
    "streaming channels with the stragglers": replace(USUAL, deferral="stragglers"),
    "no rollback": replace(USUAL, rollbacks=()),
    "three rollbacks": replace(USUAL, rollbacks=(0.40, 0.52, 0.75)),
    "three rollbacks, hidden order": replace(HIDDEN, rollbacks=(0.40, 0.52, 0.75)),
    "quiet people": replace(USUAL, streams_per_week=0.7),
    "busy people, hidden order": replace(HIDDEN, streams_per_week=9.0),
    "no breaks": replace(USUAL, interruptions=0.0),
    "many breaks, hidden order": replace(HIDDEN, interruptions=0.6),
    "large batches at one moment": replace(USUAL, batch_share=1 / 20, batch_spread_s=1.0),
    "channel by channel, hidden order": replace(HIDDEN, batch_share=1 / 1_000),
    "a fifth of the requests fail": replace(USUAL, failures=0.2),
    "every notice is heard": replace(USUAL, notice_loss=0.0),
    "one notice in ten is heard, hidden order": replace(HIDDEN, notice_loss=0.9),
    "against it": AGAINST,
    "against it, few requests": replace(AGAINST, requests_per_s=0.025),
    "a day and a half": replace(USUAL, days=1.5),
    "a day and a half, hidden order": replace(HIDDEN, days=1.5),
    "a day and a half, few requests": replace(USUAL, days=1.5, requests_per_s=0.033),
    "a day and a half, few requests, hidden order": replace(HIDDEN, days=1.5, requests_per_s=0.017),
    "two days, few requests, every notice is heard": replace(USUAL, days=2.0, requests_per_s=0.05, notice_loss=0.0),
    "against it, three rollbacks in one week": replace(AGAINST, days=7.0, rollbacks=(0.40, 0.52, 0.75)),
}
POLICIES = ("round-robin", "live-first", "ours")


def run(*, seed: int = 1, jobs: int = 2, only: Sequence[str] = ()) -> dict[str, Any]:
    """Play the grid.

    Args:
        seed: of every world.
        jobs: worlds at once.
        only: names of scenarios; none for all.
    """
    chosen = [name for name in GRID if not only or name in only]
    rows = []
    with ProcessPoolExecutor(jobs) as pool:
        for row in pool.map(_play_one, chosen, [seed] * len(chosen)):
            rows.append(row)
            print(f"{row['scenario']}: {row['round_robin_ratio']}", file=sys.stderr, flush=True)
    return {
        "seed": seed,
        "scenarios": len(rows),
        "worst_round_robin_ratio": min(row["round_robin_ratio"] for row in rows),
        "rows": rows,
    }


def _play_one(name: str, seed: int) -> dict[str, Any]:
    world = build_world(GRID[name], seed)
    minutes = {policy: play(world, make_policy(policy, world), policy).exposure_min for policy in POLICIES}
    ours = max(minutes["ours"], 1e-3)
    return {
        "scenario": name,
        "exposure_min": {policy: round(value, 2) for policy, value in minutes.items()},
        "round_robin_ratio": round(minutes["round-robin"] / ours, 2),
        "live_first_ratio": round(minutes["live-first"] / ours, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Play and print; 1 if the schedule was worse than round-robin anywhere."""
    parser = argparse.ArgumentParser(prog="bench exposure_grid")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], help="a scenario by name; may be repeated")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    report = run(seed=given.seed, jobs=given.jobs, only=tuple(given.only))
    if given.json:
        print(json.dumps(report))
    else:
        print("| world | round-robin | live-first | ours | ratio | ratio |\n|---|--:|--:|--:|--:|--:|")
        for row in report["rows"]:
            minutes = " | ".join(f"{row['exposure_min'][policy]:,.0f}" for policy in POLICIES)
            print(f"| {row['scenario']} | {minutes} | {row['round_robin_ratio']} | {row['live_first_ratio']} |")
        print("worst:", report["worst_round_robin_ratio"])
    return 0 if report["worst_round_robin_ratio"] >= 1.0 else 1


if __name__ == "__main__":
    sys.exit(main())
