"""``serverchange bench exposure``: how much exposure does the lookup schedule save for the same requests?

Plays whole migrations (:mod:`exposure_world`) with each policy (:mod:`exposure_policies`) and prints one JSON object,
or a table. *Exposure* is minutes in which a channel streams on a cluster other than the one we believe, summed over
channels. ``round_robin_ratio`` and ``live_first_ratio`` are that policy's exposure divided by ours, a figure a seed.

    python benchmarks/exposure.py --quick --json
    python benchmarks/exposure.py --channels 200000 --days 14 --requests-per-second 20 --seeds 5 --json
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).parent))

from exposure_chart import draw_exposure
from exposure_play import Outcome, play
from exposure_policies import make_policy
from exposure_world import Scenario, build_world

POLICIES = ("round-robin", "oldest-first", "live-first", "ours", "oracle")
LOSSES = (0.0, 0.3, 0.9, 1.0)
LOSS_SIZE = 10
"""The other losses of notices are played at a tenth of the size, on one seed."""
LEAST_CHANNELS = 500


def run(
    *,
    channels: int = 200_000,
    days: float = 14.0,
    requests_per_second: float = 20.0,
    seeds: int = 5,
    policies: Sequence[str] = POLICIES,
    jobs: int = 2,
    with_losses: bool = True,
    order: Literal["name", "hidden"] = "name",
) -> dict[str, Any]:
    """Play the worlds and compare.

    Args:
        channels: how many can move.
        days: length of the migration.
        requests_per_second: what every policy spends, streams scans included.
        seeds: worlds 1 to ``seeds``.
        policies: which to play; ratios need ``ours``.
        jobs: processes at once, each with one policy group in one world.
        with_losses: play the notices' losses, too.
        order: whether batches follow the alphabet within a label, or nothing that can be seen.

    Returns:
        What ``--json`` prints.
    """
    began = time.perf_counter()
    scenario = Scenario(channels=channels, days=days, requests_per_s=requests_per_second, order=order)
    by_seed = _play([(scenario, seed) for seed in range(1, seeds + 1)], policies, jobs)
    report: dict[str, Any] = {
        "channels": channels,
        "days": days,
        "requests_per_s": requests_per_second,
        "seeds": list(range(1, seeds + 1)),
        "notice_loss": scenario.notice_loss,
        "order": order,
        **_ratios(by_seed),
        "outcomes": [{"seed": seed, **asdict(outcome)} for seed, row in enumerate(by_seed, 1) for outcome in row],
    }
    if with_losses:
        report["by_loss"] = _play_losses(scenario, policies, jobs)
    report["elapsed_s"] = round(time.perf_counter() - began, 1)
    return report


def _play_losses(scenario: Scenario, policies: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    small = scenario.scaled(max(LEAST_CHANNELS, scenario.channels // LOSS_SIZE))
    played = _play([(replace(small, notice_loss=loss), 1) for loss in LOSSES], policies, jobs)
    return [
        {
            "notice_loss": loss,
            "channels": small.channels,
            "exposure_min": {outcome.policy: round(outcome.exposure_min, 2) for outcome in outcomes},
        }
        for loss, outcomes in zip(LOSSES, played, strict=True)
    ]


def _play(worlds: Sequence[tuple[Scenario, int]], policies: Sequence[str], jobs: int) -> list[list[Outcome]]:
    """Play every policy in every world: ours is one task a world, all others together another."""
    groups = [[name for name in policies if name == "ours"], [name for name in policies if name != "ours"]]
    tasks = [(scenario, seed, group) for group in groups if group for scenario, seed in worlds]
    played: list[list[Outcome]] = []
    for (scenario, seed, _), outcomes in zip(tasks, _play_tasks(tasks, jobs), strict=True):
        played.append(outcomes)
        _tell_progress(scenario, seed, outcomes)
    by_world: list[dict[str, Outcome]] = [{} for _ in worlds]
    for number, outcomes in enumerate(played):
        by_world[number % len(worlds)].update({outcome.policy: outcome for outcome in outcomes})
    return [[outcomes[name] for name in policies] for outcomes in by_world]


def _play_tasks(tasks: Sequence[tuple[Scenario, int, list[str]]], jobs: int) -> Iterator[list[Outcome]]:
    if jobs < 2:
        yield from itertools.starmap(_play_group, tasks)
        return
    with ProcessPoolExecutor(jobs, max_tasks_per_child=1) as pool:
        yield from pool.map(_play_group, *zip(*tasks, strict=True))


def _tell_progress(scenario: Scenario, seed: int, outcomes: list[Outcome]) -> None:
    """Say on standard error what is known already: a full run takes an hour."""
    for outcome in outcomes:
        print(
            f"{scenario.channels} channels, notices lost {scenario.notice_loss:.0%}, seed {seed}, {outcome.policy}: "
            f"{outcome.exposure_min:.1f} min exposed, {outcome.cpu_us_a_decision:.1f} us a decision",
            file=sys.stderr,
            flush=True,
        )


def _play_group(scenario: Scenario, seed: int, names: list[str]) -> list[Outcome]:
    world = build_world(scenario, seed)
    return [play(world, make_policy(name, world), name) for name in names]


def _ratios(by_seed: list[list[Outcome]]) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for outcomes in by_seed:
        exposure = {outcome.policy: outcome.exposure_min for outcome in outcomes}
        for name, minutes in exposure.items():
            if name != "ours" and "ours" in exposure:
                key = name.replace("-", "_") + "_ratio"
                ratios.setdefault(key, []).append(round(minutes / max(exposure["ours"], 1e-9), 3))
    return ratios


def _print_table(report: dict[str, Any]) -> None:
    print(f"{report['channels']} channels, {report['days']} days, {report['requests_per_s']} requests/s")
    print(
        f"{'seed':>4} {'policy':13} {'exposure min':>12} {'p99':>7} {'exposed':>8} {'lookups':>9} {'scans':>9} "
        f"{'found p50 s':>11} {'us':>6}"
    )
    for row in report["outcomes"]:
        print(
            f"{row['seed']:>4} {row['policy']:13} {row['exposure_min']:12.1f} {row['exposure_p99_min']:7.2f} "
            f"{row['exposed_channels']:8} {row['lookups']:9} {row['scans']:9} {row['detection_s_p50']:11.0f} "
            f"{row['cpu_us_a_decision']:6.1f}"
        )
    for key, values in report.items():
        if key.endswith("_ratio"):
            print(key, values)
    for row in report.get("by_loss", ()):
        print("notices lost:", row["notice_loss"], row["exposure_min"])


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, play, print."""
    parser = argparse.ArgumentParser(prog="bench exposure", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--channels", type=int, default=200_000)
    parser.add_argument("--days", type=float, default=14.0)
    parser.add_argument("--requests-per-second", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="20,000 channels, 2 requests/s, 1 seed, no other losses")
    parser.add_argument("--policies", default=",".join(POLICIES), help="which to play, by name")
    parser.add_argument("--order", choices=("name", "hidden"), default="name", help="what batches follow")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--charts", type=Path, help="write the chart of exposure over time into this folder")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args(argv)
    if given.quick:
        given.channels, given.requests_per_second, given.seeds = 20_000, 2.0, 1
    report = run(
        channels=given.channels,
        days=given.days,
        requests_per_second=given.requests_per_second,
        seeds=given.seeds,
        policies=tuple(given.policies.split(",")),
        jobs=given.jobs,
        with_losses=not given.quick,
        order=given.order,
    )
    if given.charts:
        given.charts.mkdir(parents=True, exist_ok=True)
        first = [row for row in report["outcomes"] if row["seed"] == 1]
        chart = draw_exposure({row["policy"]: row["by_hour_min"] for row in first})
        (given.charts / f"exposure-{given.order}.svg").write_text(chart, encoding="utf-8")
    if given.json:
        print(json.dumps(report))
    else:
        _print_table(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
