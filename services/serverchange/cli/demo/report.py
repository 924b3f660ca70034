"""Shows what a run was like: a report for people, one JSON object for machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from serverchange.cli.demo.checks import Check, Findings, Spread
from serverchange.cli.demo.facts import Belief
from serverchange.cli.demo.options import DemoOptions
from serverchange.simulator.settings import WrongCluster

EXAMPLES_MAX: Final = 5
DETECTION_TARGET_MS: Final = 2_000.0
HANDOVER_TARGET_MS: Final = 3_000.0
"""What an idle machine keeps where moves are announced; a busy one may miss them, so they fail no run."""


def to_json(findings: Findings, checks: Sequence[Check], options: DemoOptions) -> dict[str, Any]:
    """Return the report as JSON; the keys' meanings are in docs/demo.md."""
    return {
        "ok": all(one.passed for one in checks),
        "failed": [one.name for one in checks if not one.passed],
        "seed": options.seed,
        "seconds": options.seconds,
        "wrong_cluster": options.wrong_cluster.value,
        "channels": findings.channels,
        "moves": findings.moves,
        "changes": findings.changes,
        "needless_changes": findings.needless_changes,
        "state_mismatches": len(findings.state_mismatches),
        "mismatch_channel_seconds": findings.mismatch_channel_seconds,
        "changes_missing": findings.changes_missing,
        "changes_out_of_order": findings.changes_out_of_order,
        "chat_sent": findings.chat_sent,
        "chat_received": findings.chat_received,
        "duplicates": findings.duplicates,
        "lost_undetected": findings.lost_undetected,
        "lost_in_handover": findings.lost_in_handover,
        "lost_otherwise": len(findings.lost_otherwise),
        "handover_ms": _spread(findings.handover_ms),
        "slowest_handovers": [
            {"channel": one.channel, "to": one.cluster, "ms": round(one.elapsed_ms, 1)}
            for one in findings.slowest_handovers
        ],
        "detection_ms": _spread(findings.detection_ms),
        "budget_violations": sum(findings.budget_violations.values()),
        "unjoined_channels": len(findings.unjoined_channels),
        "dead_letters": findings.dead_letters,
        "api_unanswered": findings.api_unanswered,
        "lookups": findings.lookups,
        "exposure_minutes": {
            "ours": findings.exposure_ours_minutes,
            "round_robin": findings.exposure_round_robin_minutes,
        },
        "elapsed_s": findings.elapsed_s,
    }


def _spread(spread: Spread) -> dict[str, float | None]:
    return {"p50": spread.p50, "p99": spread.p99}


def print_report(console: Console, findings: Findings, checks: Sequence[Check], options: DemoOptions) -> None:
    """Print the report for people."""
    console.print()
    console.print(_figures(findings, options))
    for problem in explain(findings):
        console.print(f"  [red]{problem}[/red]", highlight=False, soft_wrap=True)
    failed = [one for one in checks if not one.passed]
    if failed:
        names = ", ".join(f"{one.name} ({one.found})" for one in failed)
        console.print(f"[bold red]FAILED[/bold red] {names}", highlight=False)
    else:
        console.print(f"[bold green]OK[/bold green] all {len(checks)} checks hold", highlight=False)


def _figures(findings: Findings, options: DemoOptions) -> Table:
    lost = findings.lost_undetected + findings.lost_in_handover + len(findings.lost_otherwise)
    announced = options.wrong_cluster is not WrongCluster.SILENT
    table = Table(title="Two weeks of migration", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = (
        ("channels, moves", f"{findings.channels:,}, {findings.moves:,} (wrong cluster: {options.wrong_cluster})"),
        ("changes published", f"{findings.changes:,}, of them {findings.needless_changes:,} needless"),
        ("a move is noticed in", _milliseconds(findings.detection_ms, DETECTION_TARGET_MS if announced else None)),
        ("a shard is over in", _milliseconds(findings.handover_ms, HANDOVER_TARGET_MS)),
        ("chat", f"{findings.chat_received:,} of {findings.chat_sent:,} lines read, {findings.duplicates} twice"),
        (
            "lost lines",
            f"{lost:,}: {findings.lost_undetected:,} before the move was noticed, {findings.lost_in_handover:,}"
            f" during the handover, {len(findings.lost_otherwise):,} otherwise",
        ),
        ("streamed elsewhere than believed", _exposure(findings)),
        ("wrong, channels x seconds", f"{findings.mismatch_channel_seconds:,.1f}"),
        ("the whole run", f"{findings.elapsed_s:.1f} s"),
    )
    for row in rows:
        table.add_row(*row)
    return table


def _exposure(findings: Findings) -> str:
    return (
        f"{findings.exposure_ours_minutes:,.0f} simulated minutes; with as many lookups in turn:"
        f" {findings.exposure_round_robin_minutes:,.0f}"
    )


def _milliseconds(spread: Spread, target_ms: float | None) -> str:
    if spread.p50 is None or spread.p99 is None:
        return "-"
    late = "" if target_ms is None or spread.p99 <= target_ms else f" (an idle machine keeps {target_ms:,.0f} ms)"
    return f"{spread.p50:,.0f} ms, 99 % in {spread.p99:,.0f} ms{late}"


def explain(findings: Findings) -> list[str]:
    """Return a sentence for each thing that is wrong, a few examples of each kind."""
    problems = [
        f"{wrong.channel}: truth {wrong.truth}, PostgreSQL {_believed(wrong.postgres)}, API {_believed(wrong.api)},"
        f" fold {_believed(wrong.fold)}"
        for wrong in findings.state_mismatches[:EXAMPLES_MAX]
    ]
    problems += [
        f"{line.channel} line {line.number}, sent on {line.cluster} at {line.at_s:.3f}, is lost"
        f" ({'it reached our link' if line.reached else 'we had left the room'})"
        for line in findings.lost_otherwise[:EXAMPLES_MAX]
    ]
    problems += [f"{channel} is not joined where it lives" for channel in findings.unjoined_channels[:EXAMPLES_MAX]]
    problems += [f"the platform counts {count} x {kind}" for kind, count in findings.budget_violations.items()]
    return problems


def _believed(belief: Belief | None) -> str:
    return "knows nothing" if belief is None else f"{belief.cluster or 'nowhere'} ({belief.status})"
