"""The words of an examination: one finding a check, with a verdict and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Verdict(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found.

    Attributes:
        check: what was examined, e.g. `topics`; several findings may come from one check.
        verdict: a failed one makes the command exit with 1; warnings and skipped checks do not.
        found: the fact, with the numbers that it rests on.
        advice: what to do about it; never empty for a warning or a failure.
    """

    check: str
    verdict: Verdict
    found: str
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the finding as `--json` prints it."""
        return {"check": self.check, "verdict": self.verdict.value, "found": self.found, "advice": self.advice}


def ok(check: str, found: str) -> Finding:
    """Return a finding that needs nothing."""
    return Finding(check, Verdict.OK, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """Return a finding that an operator should know and may live with."""
    return Finding(check, Verdict.WARNING, found, advice)


def failed(check: str, found: str, advice: str) -> Finding:
    """Return a finding that somebody must act on."""
    return Finding(check, Verdict.FAILED, found, advice)


def skipped(checks: Iterable[str], reason: str) -> Iterator[Finding]:
    """Yield a finding for each check that could not be made, with the reason."""
    for check in checks:
        yield Finding(check, Verdict.SKIPPED, reason)
