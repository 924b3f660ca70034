"""The command line: every command explains itself, and expected faults give a sentence and a code, no traceback."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from serverchange.adapters.process import ExitCode
from serverchange.cli import channels, main
from serverchange.cli.faults import Fault
from serverchange.cli.output import TABLE_ROWS_MAX, Output, answering, print_rows
from serverchange.cli.processes import SERVICES


def commands(group: object = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    group = group or get_command(main.app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["serverchange", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_shows_an_example_of_itself(path: tuple[str, ...]) -> None:
    command = dict(commands())[path]
    assert f"serverchange {' '.join(path)}" in (command.epilog or "")  # type: ignore[attr-defined]
    assert command.help  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_the_help_of_every_command_shows_an_example(path: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main.app, [*path, "--help"])
    assert "Example: " in told.output


NO_ANSWER = {
    *((service.command,) for service in SERVICES),
    ("up",),
    ("simulator",),
    ("demo",),  # a report, with a --json of its own
    ("bench",),
    ("settings",),
    ("docs", "write"),
    ("docs", "record"),
    ("schemas", "write"),
}


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_that_answers_lets_its_form_be_chosen(path: tuple[str, ...]) -> None:
    options = {name for one in dict(commands())[path].params for name in one.opts}  # type: ignore[attr-defined]
    assert ({"--output", "--json"} <= options) is (path not in NO_ANSWER)


@pytest.mark.parametrize(
    ("options", "printed"),
    [
        ([], "a\tb\n1\t-\n2\tx, y\n"),
        (["--output", "table"], "a\tb\n1\t-\n2\tx, y\n"),
        (["--json"], '{"all":[{"a":1,"b":null},{"a":2,"b":["x","y"]}]}\n'),
        (["--output", "json"], '{"all":[{"a":1,"b":null},{"a":2,"b":["x","y"]}]}\n'),
        (["--json", "--output", "json"], '{"all":[{"a":1,"b":null},{"a":2,"b":["x","y"]}]}\n'),
        (["--output", "ndjson"], '{"a":1,"b":null}\n{"a":2,"b":["x","y"]}\n'),
    ],
)
def test_an_answer_is_printed_in_the_form_that_was_chosen(options: list[str], printed: str) -> None:
    told = CliRunner().invoke(an_answer(), options)
    assert (told.stdout, told.exit_code) == (printed, 0)


def an_answer() -> typer.Typer:
    """An application of one command, which answers with two entries."""
    entries = [{"a": 1, "b": None}, {"a": 2, "b": ["x", "y"]}]
    app = typer.Typer()

    @app.command()
    @answering
    def ask(out: Output) -> None:
        out.answer(
            {"all": entries}, entries=entries, show=lambda: print_rows(["a", "b"], [[*one.values()] for one in entries])
        )

    return app


def test_json_and_another_form_contradict_each_other() -> None:
    told = CliRunner().invoke(an_answer(), ["--json", "--output", "ndjson"])
    assert isinstance(told.exception, Fault)
    assert "give one of them" in str(told.exception)


def test_a_long_table_is_shown_on_a_terminal_before_its_end_is_known(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown_before_the_last: list[str] = []

    def rows() -> Iterator[list[int]]:
        yield from ([number] for number in range(TABLE_ROWS_MAX + 1))
        shown_before_the_last.append(capsys.readouterr().out)

    print_rows(["number"], rows())
    assert f" {TABLE_ROWS_MAX - 1} " in shown_before_the_last[0]
    assert f" {TABLE_ROWS_MAX} " in capsys.readouterr().out


def test_help_loads_neither_a_client_nor_pydantic() -> None:
    code = (
        "import sys; sys.argv = ['serverchange', '--help']\n"
        "from serverchange.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'kafka', 'aiokafka', 'faust', 'psycopg', 'pydantic', 'fastapi', 'httpx', 'uvicorn'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["channels", "add", "a b"], ExitCode.USAGE, "'a b' is not a channel"),
        (["channels", "add", "#a,#b"], ExitCode.USAGE, "is not a channel"),
        (["channels", "add", "forsen", "--service", "No Such"], ExitCode.USAGE, "service"),
        (["channels", "pin", "forsen", "AWS!"], ExitCode.USAGE, "is not a cluster"),
        (["channels", "import", "/no/such/file"], ExitCode.USAGE, "cannot read /no/such/file"),
        (["bench", "no-such"], ExitCode.USAGE, "there is no benchmark"),
        (["watch", "handovers", "--label", "partner"], ExitCode.USAGE, "leave --label out"),
        (["watch", "handovers"], ExitCode.UNAVAILABLE, "Kafka does not answer"),
        (["where"], ExitCode.USAGE, "where --stdin"),
        (["where", "--stdin", "forsen"], ExitCode.USAGE, "takes every name from standard input"),
        (["where", "--stdin", "--at", "2016-02-14T12:00Z"], ExitCode.USAGE, "no --at"),
        (["where", "forsen", "--output", "yaml"], ExitCode.USAGE, "yaml"),
        (["no-such-command"], ExitCode.USAGE, "No such command"),
        (["topics", "plan"], ExitCode.UNAVAILABLE, "SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS"),
        (["channels", "add", "forsen"], ExitCode.UNAVAILABLE, "Kafka does not answer"),
    ],
)
def test_an_expected_fault_is_a_sentence_and_a_code(
    arguments: list[str],
    code: ExitCode,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")

    assert run(monkeypatch, *arguments) == code

    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


def test_a_wrong_setting_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SERVERCHANGE_KAFKA_PARTITIONS", "0")
    assert run(monkeypatch, "poller") == ExitCode.SETTINGS
    assert "SERVERCHANGE_KAFKA_PARTITIONS" in capsys.readouterr().err


def test_a_bug_keeps_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise AssertionError("must not be")

    monkeypatch.setattr(main, "app", broken)
    monkeypatch.setattr(sys, "argv", ["serverchange"])
    with pytest.raises(AssertionError, match="must not be"):
        main.main()


def test_completion_is_offered() -> None:
    assert any("completion" in option.name for option in get_command(main.app).params)  # type: ignore[operator,union-attr]


def test_an_import_takes_labels_and_any_separator() -> None:
    lines = ["forsen partner staff", "", "#Caedrel,partner", "xqc"]
    assert channels.parse_lines(lines, "file") == [
        ("forsen", ("partner", "staff")),
        ("caedrel", ("partner",)),
        ("xqc", ()),
    ]


def test_an_import_names_every_bad_line_and_gives_nothing() -> None:
    with pytest.raises(Fault, match="nothing was written") as fault:
        channels.parse_lines(["ok", "a-b", "İstanbul", "x" * 26], "file")
    assert [f"file:{number}:" in str(fault.value) for number in (1, 2, 3, 4)] == [False, True, True, True]


def test_an_import_of_garbage_names_ten_lines_and_counts_the_rest() -> None:
    with pytest.raises(Fault, match="and 990 more"):
        channels.parse_lines(["../../etc/passwd"] * 1000, "file")


def test_a_benchmark_of_the_checkout_is_run_with_its_arguments(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "echo.py").write_text("def main(argv):\n    print(argv)\n    return 3\n")
    monkeypatch.setattr("serverchange.cli.checkout._checkout", lambda: tmp_path)

    assert run(monkeypatch, "bench", "echo", "--channels", "5") == 3

    assert capsys.readouterr().out == "['--channels', '5']\n"


def test_outside_a_checkout_the_fault_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("serverchange.cli.checkout.__file__", str(tmp_path / "a" / "b" / "c" / "checkout.py"))
    with pytest.raises(Fault, match="needs a checkout"):
        main.checkout._checkout()


def test_the_page_of_the_command_line_names_every_command_and_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text("utf-8")
    assert [path for path, _ in commands() if f"`{' '.join(path)}`" not in page] == []
    assert [code for code in ExitCode if f"| {int(code)} |" not in page] == []
