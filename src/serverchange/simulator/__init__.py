"""The chat platform in a box: clusters, APIs, a migration script, faults, and a ledger of the truth.

In a test, in process::

    async with Simulator(SimulatorSettings(channels=20, script=False)) as simulator:
        simulator.move(Channel("forsen"), Cluster("aws"))
        await simulator.ledger.wait_for(EntryKind.JOINED, channel="forsen", cluster="aws", timeout_s=5)

As a process of its own: `python -m serverchange.simulator --help` (`--settings FILE` takes a `SimulatorSettings` as
JSON, `--addresses FILE` writes the addresses once every port is open), or `simulator.run(settings, …)`. It ends on
SIGTERM or SIGINT.

The addresses (file, first line on stdout, `GET /control/addresses`, `Simulator.addresses`; model `Addresses`)::

    {"api_url": "http://127.0.0.1:4001", "control_url": "http://127.0.0.1:4002", "ca_file": "/tmp/…/ca.pem",
     "clusters": {"main": {"plain": "127.0.0.1:4003", "tls": "127.0.0.1:4004",
                           "ws": "127.0.0.1:4005", "wss": "127.0.0.1:4006"}, "event": …, "aws": …, "group": …},
     "accounts": [{"login": "bot_one", "token": "…", "tier": "verified"}, …]}

The platform's API and the routes of the control interface are told in `docs/simulator.md`.

Where to read on: `world` (channels), `migration` (the script), `network` (what the clusters decide), `ledger` (the
truth), `simulator` (all of it together).
"""
