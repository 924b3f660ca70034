"""The running API of the integration tests, and a real Chromium that looks at it."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from typing import Any

import pytest

from ..integration.state_api.conftest import api, settings, tables, topics

__all__ = ["api", "browser", "settings", "tables", "topics"]

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    """Debian's Chromium; without it, or without Playwright, the test is skipped and says so."""
    playwright = pytest.importorskip("playwright.async_api", reason="the browser tests need playwright")
    if CHROMIUM is None:
        pytest.skip("the browser tests need chromium: apt-get install chromium")
    async with playwright.async_playwright() as running:
        launched = await running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        await launched.close()
