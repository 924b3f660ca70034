"""The simulator's page and its code name the same routes, faults and settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from serverchange.simulator import orders
from serverchange.simulator.control import Control
from serverchange.simulator.faults import ApiFault, ApiFaultKind, Faults, JoinSwallowed
from serverchange.simulator.settings import SimulatorSettings
from serverchange.simulator.simulator import Simulator

PAGE = (Path(__file__).parents[2] / "docs" / "simulator.md").read_text("utf-8")
MODELS: list[type[BaseModel]] = [
    SimulatorSettings,
    Faults,
    ApiFault,
    JoinSwallowed,
    *(model for model in vars(orders).values() if isinstance(model, type) and issubclass(model, BaseModel)),
]


def routes_on_the_page() -> Iterator[tuple[str, str]]:
    for row in re.findall(r"^\| (`.*?) \|", PAGE, re.MULTILINE):
        methods = re.findall(r"\b(GET|PUT|POST|DELETE)\b", row.split("/control/")[0])
        for name in re.findall(r"/control/([a-z-]+)", row):
            yield from ((method, name) for method in methods)


def test_the_page_lists_exactly_the_routes_of_the_control_interface() -> None:
    control = Control(Simulator(SimulatorSettings(channels=1)))
    assert sorted(routes_on_the_page()) == sorted(control.routes)


def test_the_page_lists_every_fault_of_the_api() -> None:
    assert [kind for kind in ApiFaultKind if f"`{kind}`" not in PAGE] == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_says_what_it_is(model: type[BaseModel]) -> None:
    assert [name for name, field in model.model_fields.items() if not field.description] == []


def test_every_setting_is_on_the_page() -> None:
    assert [name for name in SimulatorSettings.model_fields if f"`{name}`" not in PAGE] == []
