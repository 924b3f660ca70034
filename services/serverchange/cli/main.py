# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""The command `serverchange`: names every command, imports what one needs only when it runs.

Nothing but typer is imported at the top, so `--help` and completion stay quick. Commands raise a `Fault` for whatever
a user may meet; `main` prints it on standard error and exits with the documented code (docs/cli.md).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from serverchange.cli import answers, brake, budget, channels, checkout, fleet_size, log, topics
from serverchange.cli.doctor import command as doctor
from serverchange.cli.faults import CheckFault, Fault, UnavailableFault
from serverchange.cli.processes import SERVICES, run_service, run_simulator
from serverchange.cli.supervised import end_with_supervisor

app = typer.Typer(
    name="serverchange",
    help="Tracks which chat cluster every channel lives on, and moves bot shards when a channel moves.",
    epilog="Start with: serverchange demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

SEE: Final = "See it work"
RUN: Final = "Run"
ASK: Final = "Ask"
OPERATE: Final = "Operate"
DEVELOP: Final = "Develop"

DataOption = Annotated[Path | None, typer.Option("--data", help="Folder of all data and logs.", show_default=False)]


@app.command(rich_help_panel=SEE, epilog="Example: serverchange demo --channels 200 --seconds 30 --seed 7")
def demo(
    channels: Annotated[int, typer.Option(min=10, max=20_000, help="Channels of the simulated platform.")] = 500,
    seed: Annotated[int, typer.Option(help="Decides who moves when; the same seed, the same migration.")] = 1,
    seconds: Annotated[float, typer.Option(min=5, max=3_600, help="Real seconds that the two weeks take.")] = 60.0,
    wrong_cluster: Annotated[
        str, typer.Option(help="What a wrong cluster shows: silent, serverchange or clusterchange.")
    ] = "serverchange",
    data: DataOption = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the data folder afterwards.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on standard output.")] = False,
) -> None:
    """Watch two weeks of a cluster migration in a minute, on a real Kafka and a real PostgreSQL, and check it."""
    from serverchange.cli.demo.options import DemoOptions
    from serverchange.cli.demo.run import run_demo

    raise typer.Exit(
        run_demo(DemoOptions.parse(channels, seed, seconds, wrong_cluster, data, keep=keep, as_json=as_json))
    )


@app.command(rich_help_panel=RUN, epilog="Example: serverchange up --simulator --data .serverchange/up")
def up(
    simulator: Annotated[bool, typer.Option("--simulator", help="Run the simulated platform, too.")] = False,
    number: Annotated[int, typer.Option("--channels", min=1, help="Channels of the simulated platform.")] = 500,
    data: DataOption = None,
) -> None:
    """Run everything on this machine, supervised: Kafka, PostgreSQL and every service, until Ctrl-C."""
    from serverchange.cli.up import UpOptions, run_up

    raise typer.Exit(run_up(UpOptions(data or Path(".serverchange/up"), simulator, number)))


@app.command(
    rich_help_panel=RUN,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    epilog="Example: serverchange simulator --help",
)
def simulator(context: typer.Context) -> None:
    """Run the chat platform in a box: clusters, APIs, a migration script, faults, a ledger of the truth."""
    run_simulator(context.args)


for _service in SERVICES:
    app.command(
        _service.command,
        help=_service.does,
        rich_help_panel=RUN,
        epilog=f"Example: {_service.example}. Settings: serverchange settings",
    )(run_service(_service))

app.add_typer(topics.app, name="topics", rich_help_panel=OPERATE)
app.add_typer(channels.app, name="channels", rich_help_panel=OPERATE)
app.add_typer(brake.app, name="fleet", rich_help_panel=OPERATE)
fleet_size.register(brake.app)
answers.register(app, panel=ASK)
budget.register(app, panel=OPERATE)
log.register(app, panel=OPERATE)
doctor.register(app, panel=OPERATE)
checkout.register(app, panel=DEVELOP)


def main() -> NoReturn:
    """Run the command line; never returns. Exit codes: `ExitCode` in `serverchange.adapters.process`."""
    end_with_supervisor()
    try:
        app()
    except Fault as fault:
        _exit(str(fault), fault)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `serverchange watch | head`: the reader has what it wanted
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if (known := _as_fault(error)) is None:
            raise
        _exit(str(known), known)
    sys.exit(0)


def _as_fault(error: Exception) -> Fault | None:
    """Return the adapters' expected faults as ours; None for a bug. Their modules are loaded if they raised it."""
    name = f"{type(error).__module__}.{type(error).__name__}"
    if name == "serverchange.adapters.settings.SettingsError":
        return SettingsFault(str(error))
    if name in {
        "serverchange.events.Rejected",
        "serverchange.adapters.kafka.topics.TopicsError",
    }:
        return Fault(str(error))
    if name in {"serverchange.materializer.rebuild.RebuildError", "serverchange.materializer.verify.VerifyError"}:
        return UnavailableFault(str(error))
    if name == "serverchange.embedded.errors.EmbeddedError":
        return UnavailableFault(str(error))
    if name.startswith(("kafka.errors.", "serverchange.adapters.kafka.publisher.")):
        return UnavailableFault(f"Kafka: {error}. Is it running, and is SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS right?")
    if name.startswith("psycopg.errors.") or name in {"psycopg.OperationalError", "psycopg_pool.PoolTimeout"}:
        return UnavailableFault(f"PostgreSQL: {error}. Is it running, and is SERVERCHANGE_POSTGRES_DSN right?")
    return None


class SettingsFault(Fault):
    """A setting is missing or wrong."""


def _exit(message: str, fault: Fault) -> NoReturn:
    from serverchange.adapters.process import ExitCode

    code = ExitCode.USAGE
    if isinstance(fault, UnavailableFault):
        code = ExitCode.UNAVAILABLE
    elif isinstance(fault, CheckFault):
        code = ExitCode.CHECK_FAILED
    elif isinstance(fault, SettingsFault):
        code = ExitCode.SETTINGS
    print(f"error: {message}", file=sys.stderr)
    sys.exit(int(code))
