# ruff: noqa: T201 - a program for a terminal prints
"""Tells a person of every move, once, over restarts: a notifier on the SDK.

    python notify_moves.py 127.0.0.1:9092 moves.position

The position is kept in a file after each change that was handled, so a restart goes on there: a change is told again
only if the process died between telling and keeping. Where the position is too old, the notifier starts from now and
says so, since nobody wants two weeks of old news.
"""

import sys
from pathlib import Path

from serverchange.client import Changes, PositionLostError, changes


def notify(bootstrap_servers: str, kept: Path, topic_prefix: str = "") -> None:
    """Print each move, for ever."""
    since = kept.read_text() if kept.exists() else None
    try:
        tell_moves(changes(bootstrap_servers, since, from_now=since is None, topic_prefix=topic_prefix), kept)
    except PositionLostError as lost:
        print(f"moves were missed: {lost}", flush=True)
        tell_moves(changes(bootstrap_servers, from_now=True, topic_prefix=topic_prefix), kept)


def tell_moves(reader: Changes, kept: Path) -> None:
    """Print each move and keep the place behind it."""
    with reader:
        for change in reader:
            placed = change.placed
            if placed.what == "moved":
                print(f"{change.channel} moved from {placed.previous} to {placed.cluster}", flush=True)
            if reader.position is not None:
                draft = kept.with_suffix(".draft")
                draft.write_text(reader.position)
                draft.replace(kept)  # at once: a process killed while writing must not leave half a position


if __name__ == "__main__":
    notify(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
