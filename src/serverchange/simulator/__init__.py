"""The chat platform in a box: clusters, APIs, a migration script, faults, and a ledger of the truth.

In a test, in process::

    async with Simulator(SimulatorSettings(channels=20, script=False)) as simulator:
        simulator.move(Channel("forsen"), Cluster("aws"))
        await simulator.ledger.wait_for(EntryKind.JOINED, channel="forsen", cluster="aws", timeout_s=5)

As a process of its own: `python -m serverchange.simulator --help` (`--settings FILE` takes a `SimulatorSettings` as
JSON, `--addresses FILE` writes the addresses once every port is open), or `simulator.run(settings, ...)`. It ends on
SIGTERM or SIGINT.

The **addresses** (file, first line on stdout, `GET /control/addresses`, `Simulator.addresses`; model `Addresses`)::

    {"api_url": "http://127.0.0.1:4001", "control_url": "http://127.0.0.1:4002", "ca_file": "/tmp/…/ca.pem",
     "clusters": {"main": {"plain": "127.0.0.1:4003", "tls": "127.0.0.1:4004",
                           "ws": "127.0.0.1:4005", "wss": "127.0.0.1:4006"}, "event": …, "aws": …, "group": …},
     "accounts": [{"login": "bot_one", "token": "…", "tier": "verified"}, …]}

**The platform's API** (on `api_url`; shapes in `serverchange.platform`): `GET /servers?channel=`,
`GET /api/channels/NAME/chat_properties`, `GET /streams?channel=a,b` (up to 100 names), `GET /oauth2/validate`
(`Authorization: OAuth TOKEN`).

**The control interface** (on `control_url`; JSON in, JSON out; a fault in the request is 400 with `{"error": …}`):

| route | what it does |
|---|---|
| `GET /control/addresses` | the addresses, as above |
| `GET /control/status` | simulated time, script step, moves done and due, live channels, links, lines sent, violations by kind |
| `GET /control/truth` | `{"at", "wall", "moves", "channels": {name: cluster}}`: where every channel lives now; cheap |
| `GET /control/channels` | every channel: `room_id kind labels cohort home cluster live weight lines` |
| `GET /control/links` | open links: `link cluster transport login joined doomed` |
| `GET /control/ledger?since=0&kinds=moved,joined` | NDJSON of what happened, in order; `sequence` goes on at `since` |
| `GET /control/lines?since=0&links=0` | NDJSON of every numbered line: `channel number at wall cluster` (`links=1`: who got it) |
| `GET /control/wait?kind=joined&channel=&cluster=&link=&account=&since=0&timeout_s=10` | answers with the first such entry at or after `since`; 408 when the time is over |
| `POST /control/script {"action": "start"\|"pause"}` | runs or holds the migration script (habits and API lag go on) |
| `POST /control/time {"scale": 20000}` | simulated seconds a real second, from now on |
| `POST /control/move {"channel", "cluster", "force": false}` | moves a channel; 409 while it is live unless forced |
| `POST /control/live {"channel", "live": true}` | goes live or offline, and stays so whatever its habits say |
| `POST /control/chat {"channel", "count": 1, "text": null}` | sends numbered lines now; answers `{"numbers": [first, last]}` |
| `POST /control/chat-rate {"lines_per_second"}` | total rate of numbered lines |
| `POST /control/clearchat {"channel", "user": null}` | CLEARCHAT to everyone joined where the channel lives |
| `POST /control/raw {"line", "link"\|"channel"\|"cluster": …}` | sends bytes as they are (`line_base64` for any bytes; CRLF is added) |
| `POST /control/reconnect {"link"\|"cluster"\|"account": …, "share": 1.0, "waves": 1, "wave_interval_s": 0, "close_after_s": null}` | RECONNECT to the chosen links (none chosen: all), in waves; each closes 5-60 s later unless told |
| `POST /control/drop {"link"\|"cluster"\|"account": …, "abort": true}` | cuts links |
| `GET`, `PUT`, `DELETE /control/faults` | the faults that are on; `PUT` replaces them (model `Faults`) |
| `POST /control/servers {"cluster", "renew": true, "dead": 0}` | new ports for a cluster (the old ones close, links stay) and/or dead entries first in its list |
| `POST /control/api-lag {"mean_minutes", "max_minutes"}` | how long API replicas show the old cluster after a move (simulated time) |

Times: `at` is the machine's monotonic clock in seconds (the same in all processes of this machine), `wall` the same
instant as Unix time.
"""
