"""`serverchange up`: everything embedded, supervised, until a signal; prints addresses and how to use them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from serverchange.adapters.process import ExitCode
from serverchange.adapters.settings import load_settings
from serverchange.cli.faults import UnavailableFault
from serverchange.cli.fleet import Fleet, make_token, simulator_environment
from serverchange.cli.output import note, quiet_logs
from serverchange.cli.stopping import run_until_stopped
from serverchange.simulator.addresses import Addresses
from serverchange.simulator.settings import SimulatorSettings

SIGNAL_BASE: Final = 128
REAL_TIME: Final = 1.0
"""Simulated seconds a second: whoever stays up wants a platform that behaves like one, not two weeks in a minute."""

SERVICE: Final = "up"


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What was asked for.

    Attributes:
        data_dir: folder of all data and logs; the same folder goes on where it ended.
        simulator: whether to run the simulated platform, too.
        channels: of the simulated platform.
    """

    data_dir: Path
    simulator: bool
    channels: int


def run_up(options: UpOptions) -> int:
    """Run everything until a signal and return the exit code; a stop by a signal is a good end."""
    quiet_logs()
    code = run_until_stopped(_run(options))
    return int(ExitCode.OK) if code > SIGNAL_BASE else code


async def _run(options: UpOptions) -> int:
    partitions = load_settings().kafka.partitions
    async with Fleet(options.data_dir, partitions=partitions, tell=note, keep_environment=True) as fleet:
        await fleet.start_servers()
        addresses = None
        if options.simulator:
            simulated = SimulatorSettings(channels=options.channels, time_scale=REAL_TIME)
            addresses = await fleet.start_simulator(simulated)
            fleet.add_environment(simulator_environment(addresses, account=addresses.accounts[0].login))
        token_file = fleet.data_dir / "api-token"
        await fleet.start_services(token=make_token(SERVICE, token_file))
        settings_file = fleet.data_dir / "settings.toml"
        settings_file.write_text(settings_text(fleet, partitions), "utf-8")
        _print_addresses(fleet, settings_file, token_file, addresses)
        await fleet.failed.wait()
        raise UnavailableFault(fleet.failure or "a process was given up")


def settings_text(fleet: Fleet, partitions: int) -> str:
    """Return a settings file (TOML) that points the command line at this fleet."""
    host, _, port = fleet.api_url.removeprefix("http://").rpartition(":")
    # A JSON string is a TOML basic string.
    return (
        f"[kafka]\nbootstrap_servers = {json.dumps(fleet.kafka.bootstrap_servers)}\npartitions = {partitions}\n\n"
        f"[postgres]\ndsn = {json.dumps(fleet.stack.postgres.dsn)}\n\n"
        f"[api]\nhost = {json.dumps(host)}\nport = {port}\n"
    )


def _print_addresses(fleet: Fleet, settings_file: Path, token_file: Path, addresses: Addresses | None) -> None:
    lines = [
        "",
        "Everything is up. Ctrl-C stops it; the data stays.",
        f"  Kafka        {fleet.kafka.bootstrap_servers}",
        f"  PostgreSQL   {fleet.stack.postgres.dsn}",
        f"  state API    {fleet.api_url}   (live page; document: /openapi.json)",
    ]
    if addresses is not None:
        lines += [f"  platform     {addresses.api_url}", f"  its control  {addresses.control_url}/control/status"]
    example = "forsen" if addresses is None else "streamer_000001"
    lines += [
        f"  logs         {fleet.data_dir / 'logs'}",
        f"  write token  {token_file}",
        "",
        "In another terminal:",
        f"  export SERVERCHANGE_CONFIG={settings_file}",
        f"  serverchange channels add {example} --service me",
        f"  serverchange where {example}",
    ]
    print("\n".join(lines), flush=True)
