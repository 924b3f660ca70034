"""What the README shows is what is there: its example is the tested file, its links and commands exist."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serverchange.cli.main import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_subscriber_in_the_readme_is_the_tested_example() -> None:
    shown = README.split("<!-- example:read_changes -->\n```python\n")[1].split("```\n<!-- /example")[0]
    assert shown == (ROOT / "examples" / "read_changes.py").read_text("utf-8")


def test_the_readme_shows_a_run_in_which_every_check_held() -> None:
    transcript = README.split("<!-- transcript:demo -->")[1].split("<!-- /transcript:demo -->")[0]
    assert "make demo" in transcript
    assert "FAILED" not in transcript


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", document.read_text("utf-8"))
    missing = [target for target in targets if not (document.parent / target).exists()]
    assert missing == []


def test_every_command_in_the_readme_exists() -> None:
    blocks = re.findall(r"^```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    shown = {
        match
        for block in blocks
        for match in re.findall(
            r"(?:^|& |\d |t )serverchange ((?:topics |channels )?[a-z][a-z-]+)", block, re.MULTILINE
        )
    }
    runner = CliRunner()
    assert shown >= {"topics apply", "channels import", "doctor", "where", "reconnector"}
    assert {name for name in shown if runner.invoke(app, [*name.split(), "--help"]).exit_code != 0} == set()
