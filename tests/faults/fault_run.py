"""One run: workers under load and a nemesis for so many seconds, then peace, then judgement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fault_arena import Arena, Load
from fault_checker import Sampler, check, wait_caught_up
from fault_nemesis import Nemesis

CATCH_UP_S = 120.0


@dataclass
class Verdict:
    """What a run was and what was wrong with it."""

    seed: int
    seconds: float
    records: int
    faults: dict[str, int]
    samples: int
    violations: list[str]
    story: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.faults.items()))
        lines = [
            f"seed {self.seed}: {self.seconds:.0f} s, {self.records} records, {sum(self.faults.values())} faults"
            f" ({kinds}), {self.samples} samples, {len(self.violations)} violations"
        ]
        return "\n".join(lines + [f"  {violation[:400]}" for violation in self.violations])


def run(
    folder: Path,
    seed: int,
    seconds: float,
    *,
    workers: int = 3,
    per_s: float = 400,
    bugs: Sequence[str] = (),
    nemesis: Nemesis | None = None,
    between_s: tuple[float, float] = (1.0, 6.0),
    pause_s: tuple[float, float] = (1.0, 20.0),
    only: tuple[str, ...] = (),
    catch_up_s: float = CATCH_UP_S,
    faults: int | None = None,
) -> Verdict:
    """Run and judge: for so many seconds, or until there were so many `faults` if that is sooner.

    `only` names the kinds of faults, all by default.
    """
    arena = Arena(folder, seed, bugs=bugs)
    try:
        load, sampler = Load(arena, per_s), Sampler(arena)
        nemesis = Nemesis(arena, between_s, pause_s, only)
        for _ in range(workers):
            arena.add_worker()
        started = time.monotonic()
        for part in (load, sampler, nemesis):
            part.start()
        while time.monotonic() - started < seconds and (faults is None or nemesis.faults < faults):
            time.sleep(0.2)
        nemesis.stop()
        load.stop()
        behind = wait_caught_up(arena, catch_up_s)
        sampler.stop()
        violations = [f"no progress: {behind}"] if behind else []
        violations += check(arena, sampler.samples)
        return Verdict(
            seed,
            time.monotonic() - started,
            load.written,
            nemesis.done,
            len(sampler.samples),
            violations,
            nemesis.log,
        )
    finally:
        arena.close()
