"""The API as a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from serverchange.adapters.settings import Settings

from .conftest import TOKEN, TOKENS

RUN = """
from serverchange.adapters.settings import load_settings
from serverchange.state_api.main import main
main(load_settings())
"""


@asynccontextmanager
async def process(settings: Settings) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Start the process and wait until it says where it serves."""
    environment = {
        **os.environ,
        "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers,
        "SERVERCHANGE_KAFKA_TOPIC_PREFIX": settings.kafka.topic_prefix,
        "SERVERCHANGE_POSTGRES_DSN": settings.postgres.dsn.get_secret_value(),
        "SERVERCHANGE_PROCESS_LOG_FORMAT": "json",
        "SERVERCHANGE_API_PORT": "0",
        "SERVERCHANGE_API_TOKENS": TOKENS,
    }
    running = await asyncio.create_subprocess_exec(
        sys.executable, "-c", RUN, env=environment, stderr=asyncio.subprocess.PIPE
    )
    assert running.stderr is not None
    try:
        async with asyncio.timeout(30):
            async for line in running.stderr:
                entry = json.loads(line)
                if entry["event"] == "api.served":
                    yield running, f"http://{entry['host']}:{entry['port']}"
                    return
        raise AssertionError("the process ended before it served")
    finally:
        if running.returncode is None:
            running.kill()
        await running.wait()


async def until_ok(client: httpx.AsyncClient, path: str) -> None:
    async with asyncio.timeout(30):
        while not (await client.get(path)).is_success:  # noqa: ASYNC110  (another process: there is no event to await)
            await asyncio.sleep(0.02)


async def test_sigterm_ends_the_process_cleanly_while_a_stream_is_open(settings: Settings) -> None:
    async with process(settings) as (running, url), httpx.AsyncClient(base_url=url, timeout=20) as client:
        await until_ok(client, "/clusters")
        async with client.stream("GET", "/changes") as response:
            lines = response.aiter_lines()
            await anext(lines)
            running.send_signal(signal.SIGTERM)
            rest = [line async for line in lines]
        assert rest, "the stream ended by itself, not by a broken connection"
        assert await running.wait() == 0


async def test_metrics_name_routes_and_never_a_channel_or_a_token(settings: Settings) -> None:
    async with process(settings) as (_, url), httpx.AsyncClient(base_url=url, timeout=20) as client:
        await client.get("/channels/forsen")
        await client.post("/channels", json={"channels": ["x"]}, headers={"authorization": f"Bearer {TOKEN}"})
        exposition = (await client.get("/metrics")).text

    assert 'route="/channels/{name}"' in exposition
    assert "forsen" not in exposition
    assert TOKEN not in exposition
