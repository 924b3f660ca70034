"""`python -m serverchange.simulator`: a simulator as a process of its own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import run

EXAMPLE: Final = "Example: serverchange simulator --addresses /tmp/addresses.json"


def main() -> None:
    """Read the command line and run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m serverchange.simulator", description=__doc__, epilog=EXAMPLE)
    parser.add_argument("--settings", type=Path, help="JSON file with SimulatorSettings; the demo's by default")
    parser.add_argument("--addresses", type=Path, help="file to write the addresses to, once every port is open")
    arguments = parser.parse_args()
    settings = (
        SimulatorSettings.model_validate_json(arguments.settings.read_text())
        if arguments.settings is not None
        else SimulatorSettings()
    )
    run(settings, addresses_file=arguments.addresses)


if __name__ == "__main__":
    main()
