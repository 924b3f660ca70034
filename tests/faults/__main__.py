"""Long fault runs: `make faults SECONDS=7200`, or `python -m tests.faults --seconds 600 --seed 7 --runs 10`."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fault_run import run

RUN_S = 600.0
"""One run lasts so long at most; more seconds make more runs, each with a seed of its own."""


def main() -> int:
    """Run until the seconds are over; 1 if any run had a violation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--runs", type=int, default=None, help="how many runs share the seconds")
    options = parser.parse_args()
    runs = options.runs or max(1, round(options.seconds / RUN_S))
    failed = 0
    for number in range(runs):
        seed = (options.seed if options.seed is not None else time.time_ns() % 1_000_000) + number
        print(f"seed {seed} …", flush=True)
        with tempfile.TemporaryDirectory(prefix="serverchange-faults-") as folder:
            verdict = run(Path(folder), seed, options.seconds / runs)
        print(verdict, flush=True)
        failed += bool(verdict.violations)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
