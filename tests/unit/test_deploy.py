"""The production files are valid and name nothing that does not exist."""

import re
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

import serverchange.adapters.metrics  # noqa: F401  (registers every metric)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def test_the_compose_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = validator_for(schema, default=Draft202012Validator)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []


def test_every_service_is_healthy_bounded_and_no_root(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert "limits" in service["deploy"]["resources"], name
        ours = "build" in service
        assert ours or "healthcheck" in service, name
        if ours:
            assert service["user"] == "10001:10001", name


def test_every_secret_that_a_service_uses_is_declared(compose: dict[str, Any]) -> None:
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == set(compose["secrets"])


def test_every_alert_asks_for_a_metric_that_exists() -> None:
    known = {metric.name for metric in prometheus_client.REGISTRY.collect()}
    alerts = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    asked = {
        name.removesuffix("_total")
        for group in alerts["groups"]
        for rule in group["rules"]
        for name in re.findall(r"serverchange_\w+", rule["expr"])
    }
    assert asked
    assert asked <= known
