"""PostgreSQL, Kafka and the platform go away and come back: nobody asks without leave, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from outage_proxy import outage_proxy
from poller_fleet import DEADLINE_S, channels, followed_log, notice, running_poller, tracked, with_platform
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import SecretStr
from scripted_platform import Answer, scripted_platform

from serverchange.adapters.kafka.topics import apply_topics
from serverchange.adapters.postgres.request_budget import LEASE_EXPIRES_S
from serverchange.adapters.process import Process
from serverchange.adapters.settings import KafkaSettings, PostgresSettings, Settings
from serverchange.embedded.kafka import EmbeddedKafka

RESTART_DEADLINE_S = 90.0


async def until(process: Process, reached: Callable[[dict[str, str]], bool], timeout_s: float = DEADLINE_S) -> None:
    async with asyncio.timeout(timeout_s):
        while not reached(process.readiness.missing):  # noqa: ASYNC110  (a readiness can only be looked at)
            await asyncio.sleep(0.02)


async def test_without_postgres_nobody_asks_and_afterwards_all_goes_on(settings: Settings) -> None:
    names = channels(6)
    parts = conninfo_to_dict(settings.postgres.dsn.get_secret_value())
    async with (
        scripted_platform(clusters=dict.fromkeys(names, "main")) as platform,
        followed_log(settings) as log,
        outage_proxy(int(str(parts["port"]))) as proxy,
    ):
        parts |= {"port": proxy.port, "host": "127.0.0.1"}
        behind = PostgresSettings(dsn=SecretStr(make_conninfo(**parts)))
        ours = with_platform(settings, platform.url).model_copy(update={"postgres": behind})
        async with running_poller(ours) as process:
            await log.write([tracked(name) for name in names[:3]])
            await log.settled(**dict.fromkeys(names[:3], "main"))
            await proxy.cut()
            await log.write([tracked(name) for name in names[3:]])
            await until(process, lambda missing: "postgres" in missing)
            await asyncio.sleep(LEASE_EXPIRES_S + 0.5)  # what was leased before may be used until then
            asked = len(platform.lookups) + platform.scans
            await asyncio.sleep(1.0)
            assert len(platform.lookups) + platform.scans == asked
            await proxy.restore()
            await log.settled(**dict.fromkeys(names, "main"))
            await until(process, lambda missing: not missing)


async def test_a_platform_that_answers_nothing_is_asked_less_and_nobody_is_lost(settings: Settings) -> None:
    names = channels(20)
    down = True

    def script(_route: str, _channel: str) -> Answer | None:
        return (503, {}, {}) if down else None

    async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform, followed_log(settings) as log:
        platform.script = script
        async with running_poller(with_platform(settings, platform.url)) as process:
            await log.write([tracked(name) for name in names])
            await until(process, lambda missing: "platform" in missing)
            assert all(not log.observed(name) for name in names)
            down = False
            await log.settled(**dict.fromkeys(names, "main"))
            await until(process, lambda missing: "platform" not in missing)


@pytest.mark.slow
async def test_a_broker_that_is_killed_and_comes_back_loses_nothing(settings: Settings, tmp_path: Path) -> None:
    names = channels(10)
    with EmbeddedKafka(tmp_path / "kafka") as broker:
        kafka = KafkaSettings(bootstrap_servers=broker.bootstrap_servers, partitions=4)
        await asyncio.to_thread(apply_topics, kafka)
        base = settings.model_copy(update={"kafka": kafka})
        async with scripted_platform(clusters=dict.fromkeys(names, "main")) as platform:
            async with followed_log(base) as log, running_poller(with_platform(base, platform.url)) as process:
                await log.write([tracked(name) for name in names])
                await log.settled(**dict.fromkeys(names, "main"))
                await asyncio.to_thread(broker.kill)
                await until(process, lambda missing: "kafka" in missing)
                await asyncio.to_thread(broker.start)
                for name in names:
                    platform.clusters[name] = "aws"
                await log.write([notice(name, heard_on="main", version=1) for name in names])
                async with asyncio.timeout(RESTART_DEADLINE_S):
                    await log.settled(**dict.fromkeys(names, "aws"))
                await until(process, lambda missing: not missing, RESTART_DEADLINE_S)
            assert log.refused == 0
