"""Several works at once of which the first to end ends all."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any


async def first_of(works: Mapping[str, Coroutine[Any, Any, object]]) -> None:
    """Run these works, by the names of their tasks, until one of them ends; the others are cancelled and waited for.

    Raises:
        Exception: what ended the first.
    """
    tasks = [asyncio.create_task(work, name=name) for name, work in works.items()]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
