"""Decisions that follow from the seed alone, whatever ran before or beside them.

A shared random generator gives other answers as soon as two threads of the story swap places. Here each decision is
a hash of what it is about: the loss of a notice, a lag, a habit's Tuesday come out the same at any time scale.
"""

from __future__ import annotations

import math
from collections.abc import MutableSequence
from hashlib import blake2b
from typing import TypeVar

Item = TypeVar("Item")


def draw(seed: int, *about: str | int) -> float:
    """Return a number in [0, 1) that depends on `seed` and `about` only."""
    text = "/".join(map(str, (seed, *about)))
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big") / 2**56


def draw_between(low: float, high: float, seed: int, *about: str | int) -> float:
    """Return a number in [low, high), every one as likely."""
    return low + (high - low) * draw(seed, *about)


def draw_exponential(mean: float, seed: int, *about: str | int) -> float:
    """Return a waiting time with that mean; 0 if the mean is 0."""
    return -mean * math.log(1.0 - draw(seed, *about))


def shuffle(items: MutableSequence[Item], seed: int, *about: str | int) -> None:
    """Put `items` into an order that depends on `seed`, `about` and their order before."""
    keyed = sorted(range(len(items)), key=lambda index: draw(seed, *about, index))
    items[:] = [items[index] for index in keyed]
