"""`serverchange where --stdin` against the running API: a whole list of names, through the bulk look-up."""

from __future__ import annotations

import asyncio
import json
import sys

from serverchange.adapters.process import ExitCode

from .conftest import RunningApi, Tables, settled

NAMES = 10_000


async def test_ten_thousand_names_of_standard_input_are_answered_line_by_line(api: RunningApi, tables: Tables) -> None:
    await tables.store([settled(f"c{number}", on="aws") for number in range(NAMES)])
    lines = [f"#C{number}" for number in range(NAMES)]
    lines[17] = "no channel"
    lines[NAMES - 1] = "nobody"

    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "serverchange.cli", "where", "--stdin", "--output", "ndjson", "--api", api.url),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await command.communicate("\n".join(lines).encode())

    found = [json.loads(line) for line in out.splitlines()]
    assert [one["channel"] for one in found] == [f"c{number}" for number in range(NAMES - 1) if number != 17]
    assert {one["cluster"] for one in found} == {"aws"}
    told = err.decode()
    assert "line 18: 'no channel' is not a channel" in told
    assert f"line {NAMES}: nobody ever tracked nobody" in told
    assert command.returncode == ExitCode.USAGE
