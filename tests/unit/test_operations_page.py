"""The page for those who run it has what the code and the files promise it has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from serverchange.adapters.process import ExitCode
from serverchange.adapters.tracing import SpanName
from serverchange.cli.doctor.settings_checks import known_variables
from serverchange.cli.main import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text("utf-8")
ALERTS = [
    rule["alert"]
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
SECTIONS = dict(re.findall(r"^#{2,3} ([^\n]+)\n(.*?)(?=^#{2,3} |\Z)", PAGE, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_has_a_section_with_cause_and_cure(alert: str) -> None:
    assert re.search(r"\*\*Causes?\*\*", SECTIONS[alert])
    assert "**Cure**" in SECTIONS[alert]


def test_no_section_is_about_an_alert_that_does_not_exist() -> None:
    assert {name for name in SECTIONS if name.startswith("Serverchange")} == set(ALERTS)


def test_every_exit_code_of_a_process_is_explained() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", SECTIONS["Exit codes"], re.MULTILINE)}
    assert {int(code) for code in ExitCode} <= told


def test_every_span_is_explained() -> None:
    assert re.findall(r"^\| `([a-z.]+)` \|", SECTIONS["Traces"], re.MULTILINE) == list(SpanName)


def test_every_link_leads_somewhere() -> None:
    anchors = {re.sub(r"[^a-z0-9 -]", "", name.lower()).replace(" ", "-") for name in SECTIONS}
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / "docs" / path).exists(), target
        assert path or anchor in anchors, target


def test_every_command_and_variable_that_it_names_exists() -> None:
    root = get_command(app)
    for line in re.findall(r"`serverchange ([a-z-]+(?: [a-z-]+)?)", PAGE):
        first, _, second = line.partition(" ")
        command = root.commands[first]  # type: ignore[attr-defined]
        assert not hasattr(command, "commands") or second in command.commands, line
    assert set(re.findall(r"SERVERCHANGE_[A-Z_]+", PAGE)) <= known_variables()


def test_every_setting_in_dotted_form_exists() -> None:
    sections = ("kafka", "postgres", "platform", "process", "poller", "materializer", "reconnector", "listener", "api")
    for section, name in re.findall(rf"`({'|'.join(sections)})\.([a-z_]+)`", PAGE):
        assert f"SERVERCHANGE_{section}_{name}".upper() in known_variables(), (section, name)
