"""The contender of `bench api`: the shortest FastAPI and psycopg handler that answers where a channel is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from psycopg_pool import AsyncConnectionPool

QUERY = "SELECT channel, status, cluster, version, since_ms FROM channel_state WHERE channel = %s"


def main(dsn: str, port: int, pool_max: int) -> None:
    """Serve until killed."""
    pool = AsyncConnectionPool(dsn, kwargs={"autocommit": True}, min_size=1, max_size=pool_max, open=False)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with pool:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/channels/{name}")
    async def channel(name: str) -> dict[str, Any]:
        async with pool.connection() as connection:
            cursor = await connection.execute(QUERY, [name])
            row = await cursor.fetchone()
        if row is None:
            raise HTTPException(404)
        return dict(zip(("channel", "status", "cluster", "version", "since_ms"), row, strict=True))

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
