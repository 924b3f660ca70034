"""Decides which folder holds Kafka's jars: one a user, shared by all instances, never trusted unchecked."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

CACHE_ENVIRONMENT = "SERVERCHANGE_CACHE_DIR"


def jar_cache_candidates(data_dir: Path) -> Iterator[Path]:
    """Yield the folders that may hold the jars, best first.

    A container's user often has no writable home, and ``runuser --preserve-environment`` keeps another user's, so
    the temporary folder and at last the data folder itself follow.

    Args:
        data_dir: The folder of the instance that asks.
    """
    if configured := os.environ.get(CACHE_ENVIRONMENT):
        yield Path(configured) / "jars"
        return
    if base := os.environ.get("XDG_CACHE_HOME"):
        yield Path(base) / "serverchange" / "jars"
    home = os.environ.get("HOME")
    if home:
        yield Path(home) / ".cache" / "serverchange" / "jars"
    # One level below the shared folder: above it only the sticky folder itself, which nobody can rename ours in.
    yield Path(tempfile.gettempdir()) / f"serverchange-jars-{os.getuid()}"
    yield data_dir / "jars"


def first_writable(candidates: Iterator[Path]) -> Path:
    """Return the first folder that is ours and can be written, made if it is missing.

    Raises:
        PermissionError: None of them can be written.
    """
    refused: list[str] = []
    for candidate in candidates:
        try:
            candidate.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            refused.append(f"{candidate} ({error.strerror})")
            continue
        # In a shared temporary folder anyone may have made the path first and could swap a jar after its check.
        if candidate.stat().st_uid == os.getuid() and os.access(candidate, os.W_OK | os.X_OK):
            return candidate
        refused.append(f"{candidate} (not ours)")
    raise PermissionError(f"no folder for Kafka's jars can be written: {', '.join(refused)}")
