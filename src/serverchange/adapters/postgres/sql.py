"""Reads the named queries of a `.sql` file.

A query starts at `-- name: the_name`, its comment lines follow, then the statement. Names are what the typed
functions beside the files call; a file is read once.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Final, LiteralString

_NAME: Final = re.compile(r"^-- name: (?P<name>[a-z0-9_]+)$", re.MULTILINE)


@cache
def queries(subject: str) -> dict[str, LiteralString]:
    """Return the queries of `queries/<subject>.sql` by name.

    Raises:
        ValueError: a name stands twice.
    """
    text = files("serverchange.adapters.postgres.queries").joinpath(f"{subject}.sql").read_text("utf-8")
    parts = _NAME.split(text)[1:]
    named = dict(zip(parts[::2], (part.strip() for part in parts[1::2]), strict=True))
    if len(named) * 2 != len(parts):
        raise ValueError(f"{subject}.sql names a query twice")
    return named
