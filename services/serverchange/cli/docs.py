"""Writes the generated pages of `docs/`: settings, metrics, logs, events. Tests hold them against the code."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Final, get_args

from prometheus_client import REGISTRY
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from serverchange.adapters import log_events, metrics
from serverchange.adapters.settings import Settings
from serverchange.cli.event_catalogue import events_page

_MADE: Final = "<!-- Made by `make docs`; edit the descriptions in the code. -->\n"


def pages() -> dict[str, str]:
    """Return file name → text of every generated page."""
    return {
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "logs.md": logs_page(),
        "events.md": events_page(),
    }


def write_pages(folder: Path) -> list[Path]:
    """Write all pages into `folder` and return their paths."""
    written = []
    for name, text in pages().items():
        path = folder / name
        path.write_text(text, "utf-8")
        written.append(path)
    return written


def settings_page() -> str:
    """Return the page of all settings, by section."""
    parts = [
        "# Settings\n",
        _MADE,
        inspect.getdoc(inspect.getmodule(Settings)) or "",
    ]
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            continue
        parts.append(f"\n## {section}\n\n{inspect.getdoc(model)}\n")
        parts.append("| variable | default | range | meaning |\n|---|---|---|---|")
        parts.extend(_settings_rows(section, model))
    return "\n".join(parts) + "\n"


def _settings_rows(section: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        variable = f"SERVERCHANGE_{section}_{name}".upper()
        yield f"| `{variable}` | {_default(field)} | {_range(field)} | {_cell(field.description or '')} |"


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "host name and process id"
    value = field.default
    if value is PydanticUndefined or value is None or value in ("", (), {}):
        return "-"
    if isinstance(value, SecretStr):
        return "(secret)"
    return f"`{_cell(str(value))}`"


def _range(field: FieldInfo) -> str:
    bounds = []
    for limit in field.metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            value = getattr(limit, attribute, None)
            if value is not None:
                bounds.append(f"{sign} {value}")
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    return ", ".join(bounds or choices) or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def metrics_page() -> str:
    """Return the page of all metrics, from the registry that the processes expose."""
    docstring = inspect.getdoc(metrics) or ""
    rows = []
    for metric in REGISTRY.collect():
        if metric.name.startswith("serverchange_"):
            name = metric.name + ("_total" if metric.type == "counter" else "")
            rows.append(f"| `{name}` | {metric.type} | {_cell(metric.documentation)} |")
    head = ["# Metrics\n", _MADE, docstring + "\n", "| name | type | meaning |", "|---|---|---|"]
    return "\n".join([*head, *sorted(rows)]) + "\n"


def logs_page() -> str:
    """Return the page of all log events."""
    tree = ast.parse(inspect.getsource(log_events))
    names = [
        str(statement.value.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
    ]
    head = [
        "# Log events\n",
        _MADE,
        (inspect.getdoc(log_events) or "").split("\n\n", maxsplit=1)[-1] + "\n",
        "| event |",
        "|---|",
    ]
    return "\n".join([*head, *(f"| `{name}` |" for name in sorted(names))]) + "\n"
