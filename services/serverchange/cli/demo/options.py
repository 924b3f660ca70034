"""What was asked of the demo, and what follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from serverchange.cli.faults import Fault
from serverchange.simulator.settings import DAY_S, SCRIPT_DAYS, SimulatorSettings, WrongCluster

PARTITIONS: Final = 12
ACCOUNT: Final = "bot_one"
"""One verified account is enough for one shard (2,000 JOINs in 10 s)."""

LOOKUPS_PER_CHANNEL: Final = 12.0
"""Lookups a channel over the whole script when moves are announced: they only confirm what was heard."""

SILENT_LOOKUPS_PER_CHANNEL: Final = 30.0
"""The same where a lookup is the only way to know: one every two seconds in a demo of a minute."""

POLLER_TIME_SCALE_MAX: Final = 300.0
"""The poller's schedule is told of no faster days than this. At the script's own scale a stream lasts a second, a scan
of streams is always overdue, and with 2,000 channels on a busy machine scans left no request for anything else."""

LOOKUPS_PER_SECOND_MAX: Final = 400.0
"""More would take the processor time of a whole core."""


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What was asked for.

    Attributes:
        channels: of the simulated platform, all tracked.
        seed: decides who moves when.
        seconds: real seconds that the two weeks take.
        wrong_cluster: how a wrong cluster shows.
        data_dir: None for a temporary folder.
        keep: keep the folder afterwards.
        as_json: end with one JSON object on standard output.
    """

    channels: int = 500
    seed: int = 1
    seconds: float = 60.0
    wrong_cluster: WrongCluster = WrongCluster.SERVERCHANGE
    data_dir: Path | None = None
    keep: bool = False
    as_json: bool = False

    @classmethod
    def parse(
        cls,
        channels: int,
        seed: int,
        seconds: float,
        wrong_cluster: str,
        data_dir: Path | None,
        *,
        keep: bool,
        as_json: bool,
    ) -> Self:
        """Return the options that the command line names.

        Raises:
            Fault: there is no such wrong-cluster mode.
        """
        try:
            mode = WrongCluster(wrong_cluster.lower())
        except ValueError as error:
            raise Fault(f"--wrong-cluster is one of {', '.join(WrongCluster)}, not {wrong_cluster!r}") from error
        return cls(channels, seed, seconds, mode, data_dir, keep, as_json)

    @property
    def time_scale(self) -> float:
        """Simulated seconds a real second."""
        return SCRIPT_DAYS * DAY_S / self.seconds

    @property
    def lookups_per_second(self) -> float:
        """The poller's request budget."""
        silent = self.wrong_cluster is WrongCluster.SILENT
        each = SILENT_LOOKUPS_PER_CHANNEL if silent else LOOKUPS_PER_CHANNEL
        return min(LOOKUPS_PER_SECOND_MAX, max(20.0, each * self.channels / self.seconds))

    @property
    def service_environment(self) -> dict[str, str]:
        """The services' settings, without prefix: two weeks in a minute ask for a quicker pace than production."""
        return {
            "PLATFORM_REQUESTS_PER_SECOND": f"{self.lookups_per_second:g}",
            "POLLER_TIME_SCALE": f"{min(self.time_scale, POLLER_TIME_SCALE_MAX):g}",
            "POLLER_REPEAT_AFTER_S": "[0.25, 0.5, 1.0]",
            "POLLER_FRESHNESS_FLUSH_S": "0.5",
            "RECONNECTOR_OVERLAP_S": "3",
            "RECONNECTOR_DRAIN_TIMEOUT_S": "1",
        }

    @property
    def simulator(self) -> SimulatorSettings:
        """The platform's settings: its script and its chat wait until everyone is there."""
        return SimulatorSettings(
            seed=self.seed,
            channels=self.channels,
            time_scale=self.time_scale,
            script_starts_paused=True,
            wrong_cluster=self.wrong_cluster,
            lines_per_second=0.0,
        )
