"""Records the transcripts of the documents by running their commands, and says whether one has gone stale.

A transcript stands between `<!-- transcript:NAME -->` and `<!-- /transcript:NAME -->`: a code block of commands
(`$ …`), each followed by what it printed. Recording runs the commands that stand there and puts their output in its
place; tests run them, too, and compare what does not vary: times, counts and ids are left out (`normalised`).

The commands run in a shell against a freshly started `serverchange up --simulator`, for whose state API
`localhost:8080` stands; `make demo` runs by itself.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from serverchange.cli.faults import UnavailableFault

CHANNELS: Final = 40
COMMAND_TIMEOUT_S: Final = 300.0
SETTLE_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 60.0
LINE_MAX: Final = 120
"""A longer line of JSON goes on in the next one, behind a comma."""

DOCUMENTED_API: Final = "localhost:8080"
CURL: Final = "curl -s "
"""Asked by our own client, so that curl need not be installed."""

DOCUMENTS: Final = ("README.md", "docs/cli.md", "docs/api.md")

_BLOCK: Final = re.compile(
    r"(?P<head><!-- transcript:(?P<name>[a-z-]+) -->\n```\n)(?P<body>.*?)(?P<tail>```\n<!-- /transcript:(?P=name) -->)",
    re.DOTALL,
)
_FOLD: Final = re.compile(r",\n ")
_VARIES: Final = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)"), "TIME"),
    (re.compile(r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), "ID"),
    (re.compile(r"\b(127\.0\.0\.1|localhost):\d+"), "HOST"),
    (re.compile(r"(?<![\w.])\d[\d,]*(\.\d+)?(?![\w])"), "N"),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One command of a transcript and what it printed, standard error included."""

    command: str
    output: str


def read_transcripts(text: str) -> dict[str, list[Step]]:
    """Return the transcripts of a document by name."""
    return {match["name"]: _steps(match["body"]) for match in _BLOCK.finditer(text)}


def _steps(body: str) -> list[Step]:
    parts = re.split(r"^\$ (.*)\n", body, flags=re.MULTILINE)[1:]
    return [Step(command, output) for command, output in zip(parts[::2], parts[1::2], strict=True)]


def replaced(text: str, run: Callable[[Step], str], names: frozenset[str] = frozenset()) -> str:
    """Return the document with every command's output as `run` gives it; with `names` in these transcripts alone."""

    def block(match: re.Match[str]) -> str:
        if names and match["name"] not in names:
            return match[0]
        steps = [f"$ {step.command}\n{folded(run(step))}" for step in _steps(match["body"])]
        return match["head"] + "".join(steps) + match["tail"]

    return _BLOCK.sub(block, text)


def folded(output: str) -> str:
    """Return the output with long lines of JSON broken behind commas; `normalised` takes that back."""
    lines = []
    for line in output.splitlines():
        while line.startswith(("{", "[", ' "')) and len(line) > LINE_MAX and (cut := line.rfind(',"', 0, LINE_MAX)) > 0:
            lines.append(line[: cut + 1])
            line = " " + line[cut + 1 :]  # noqa: PLW2901  (what is left of it)
        lines.append(line)
    return "".join(line + "\n" for line in lines)


def normalised(output: str) -> str:
    """Return the output without what varies from run to run."""
    text = _FOLD.sub(",", output.rstrip("\n"))
    for pattern, word in _VARIES:
        text = pattern.sub(word, text)
    return text


_RARELY_SAID: Final = ("are joined where they live", "downloading", "Kafka: N/N jars")
"""Where joining takes long, and at the first start on a machine."""


def normalised_demo(output: str) -> list[str]:
    """Return what does not vary of a demo's output: the kinds of its lines, each once, the table and the verdict."""
    kinds: list[str] = []
    for line in output.splitlines():
        said = line.strip()
        if re.match(r"\d+\.\d s  ", said):
            said = re.sub(r"^.*?: .*; (?=\d+ moves)", "STEP: CLUSTERS; ", said.partition("  ")[2])
            said = normalised(said).replace("?", "N")
            if said in kinds or any(words in said for words in _RARELY_SAID):
                continue
            kinds.append(said)
    table = " ".join(re.findall(r"^│(.*)│$", output, re.MULTILINE)).replace("│", " ")
    table = re.sub(r"\(an\s+idle\s+machine[^()]*\)", "", table)  # only a busy machine's report says it
    last = next((line for line in output.splitlines() if line.startswith(("OK ", "FAILED "))), "")
    return [*kinds, re.sub(r"\s+", " ", normalised(table)).strip(), normalised(last)]


@dataclass(frozen=True, slots=True)
class Shell:
    """Runs commands as a person would who follows the documents against a running system.

    Attributes:
        settings_file: what `serverchange up` wrote.
    """

    settings_file: Path

    @property
    def api(self) -> str:
        """Host and port of the state API."""
        api = tomllib.loads(self.settings_file.read_text("utf-8"))["api"]
        return f"{api['host']}:{api['port']}"

    def run(self, step: Step) -> str:
        """Return what the command prints now.

        Raises:
            UnavailableFault: it does not end, or the channels that it added do not settle.
        """
        if step.command.startswith(CURL):
            url = step.command.removeprefix(CURL).replace(DOCUMENTED_API, self.api)
            return httpx.get(f"http://{url}", timeout=COMMAND_TIMEOUT_S, trust_env=False).text
        environment = {**os.environ, "SERVERCHANGE_CONFIG": str(self.settings_file), "PYTHONUNBUFFERED": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        try:
            ended = subprocess.run(  # noqa: S603  (the documents' own commands)
                ["/bin/sh", "-c", step.command],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=COMMAND_TIMEOUT_S,
                env=environment,
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableFault(f"{step.command} did not end within {COMMAND_TIMEOUT_S:g} s") from error
        if "channels add" in step.command:
            self._wait_settled(re.findall(r"\b\w+_\d{6}\b", step.command))
        return ended.stdout

    def _wait_settled(self, channels: list[str]) -> None:
        """Wait until lookups have confirmed where the channels are: what is asked next is the same in each run."""
        deadline_s = time.monotonic() + SETTLE_TIMEOUT_S
        asking = Step(f"serverchange where {' '.join(channels)} --json", "")
        while time.monotonic() < deadline_s:
            answer = self.run(asking)
            found = json.loads(answer.splitlines()[0])["channels"] if answer.startswith("{") else []
            if len(found) == len(channels) and all(one["verified"] and one["verified_at"] for one in found):
                return
            time.sleep(0.5)  # another process: there is no event to await
        raise UnavailableFault(f"{', '.join(channels)} did not settle within {SETTLE_TIMEOUT_S:g} s")


def record(root: Path, names: frozenset[str] = frozenset()) -> list[Path]:
    """Record these transcripts of the checkout anew, or all; returns the documents read.

    Raises:
        UnavailableFault: a system or a demo does not run as it should; nothing more is written then.
    """
    paths = [root / name for name in DOCUMENTS]
    with running_system() as shell:
        for path in paths:
            text = path.read_text("utf-8")
            path.write_text(replaced(text, lambda step: _demo(step) or shell.run(step), names), "utf-8")
    return paths


def _demo(step: Step) -> str | None:
    if not step.command.startswith("make demo"):
        return None
    arguments = re.sub(r'^make demo ARGS="(.*)"$', r"\1", step.command).split()
    ended = subprocess.run(  # noqa: S603  (our own command)
        [sys.executable, "-P", "-m", "serverchange.cli", "demo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    if ended.returncode != 0:
        raise UnavailableFault(f"the demo failed; it is not recorded:\n{ended.stdout}")
    return ended.stdout


@contextmanager
def running_system() -> Iterator[Shell]:
    """Run `serverchange up --simulator` on fresh data."""
    with tempfile.TemporaryDirectory(prefix="serverchange-transcripts-") as folder:
        data = Path(folder) / "up"
        command = ["up", "--simulator", "--channels", str(CHANNELS), "--data", str(data)]
        up = subprocess.Popen(  # noqa: S603  (our own command)
            [sys.executable, "-P", "-m", "serverchange.cli", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            assert up.stdout is not None  # noqa: S101  (it is a pipe)
            said = []
            for line in up.stdout:
                said.append(line)
                if "serverchange where" in line:
                    break
            else:
                raise UnavailableFault("serverchange up did not start:\n" + "".join(said))
            yield Shell(data / "settings.toml")
        finally:
            up.send_signal(signal.SIGTERM)
            up.wait(STOP_TIMEOUT_S)
