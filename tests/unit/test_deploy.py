"""The production files are valid and name nothing that does not exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for

import serverchange.adapters.metrics as our_metrics
from serverchange.adapters.platform_api import Reason, Route
from serverchange.cli.doctor.settings_checks import known_variables
from serverchange.cli.processes import SERVICES
from serverchange.events import ChangeKind
from serverchange.state_api.app import openapi_document
from serverchange.topics import ALL_TOPICS
from serverchange.tracker.budget import Kind
from serverchange.tracker.handover_words import Cause, Outcome

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))

FROM_PROMETHEUS = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "severity", "job", "instance"},
}
"""Series that Prometheus makes itself, with the labels that expressions may use."""

FROM_SCRAPING = {"job", "instance"}

LABEL_VALUES = {
    "topic": {topic.name for topic in ALL_TOPICS},
    "route": {route.value for route in Route} | set(openapi_document()["paths"]),
    "what": {kind.value for kind in ChangeKind},
    "kind": {kind.value for kind in Kind},
    "cause": {cause.value for cause in Cause},
    "set": {"wanted", "confirmed"},
    "sides": {"0", "1", "2"},
    "job": {service.command for service in SERVICES},
}

OUTCOMES = {
    "serverchange_lookups_total": {"answered"} | {reason.value for reason in Reason},
    "serverchange_handovers_total": {outcome.value for outcome in Outcome},
    "serverchange_lines_received_total": {"delivered", "duplicate", "dropped", "unroutable", "rejected"},
    "serverchange_notices_total": {"written", "repeated"},
}

SELECTOR = re.compile(
    r"\b(?P<name>(?:serverchange|process)_\w+|up|ALERTS)\b(?:\{(?P<matchers>[^}]*(?:\{\w+\}[^}]*)*)\})?"
)
MATCHER = re.compile(r'(?P<label>\w+)\s*(?P<operator>=~|!~|!=|=)\s*"(?P<value>[^"]*)"')
GROUPING = re.compile(r"\bby \((?P<labels>[^)]*)\)")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return loaded


def alert_rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load((ROOT / "deploy/prometheus/alerts.yml").read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for panel in board["panels"]:
            for target in panel.get("targets", []):
                yield f"{path.stem}: {panel['title']}", target["expr"]
        for annotation in board["annotations"]["list"]:
            yield f"{path.stem}: annotation {annotation['name']}", annotation["expr"]


EXPRESSIONS = [*((rule["alert"], rule["expr"]) for rule in alert_rules()), *dashboard_expressions()]


def known_series() -> dict[str, set[str]]:
    """Return the names of all series that a process exposes, with their labels."""
    own = {name: set(value._labelnames) for name, value in vars(our_metrics).items() if hasattr(value, "_labelnames")}
    by_name = {getattr(our_metrics, name)._name: labels for name, labels in own.items()}
    series: dict[str, set[str]] = {name: set(labels) for name, labels in FROM_PROMETHEUS.items()}
    for metric in prometheus_client.REGISTRY.collect():
        labels = by_name.get(metric.name, set()) | FROM_SCRAPING
        if metric.type == "histogram":
            series[f"{metric.name}_bucket"] = labels | {"le"}
            series |= {f"{metric.name}_{part}": labels for part in ("sum", "count")}
        else:
            series[metric.name + ("_total" if metric.type == "counter" else "")] = labels
    return series


SERIES = known_series()


def test_the_compose_file_follows_the_compose_specification(compose: dict[str, Any]) -> None:
    schema = get_builtin_schema("vendor.compose-spec")
    validator = validator_for(schema, default=Draft202012Validator)(schema)
    assert [error.message for error in validator.iter_errors(compose)] == []


def test_every_service_is_bounded_restarts_and_has_no_rights_beyond_its_own(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        limits = service["deploy"]["resources"]["limits"]
        assert {"cpus", "memory", "pids"} == set(limits), name
        assert service["restart"] == ("no" if name == "topics" else "unless-stopped"), name
        assert service["user"].split(":")[0] != "0", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"]["max-size"], name


def test_every_service_has_a_health_check_of_its_own_or_of_the_image(compose: dict[str, Any]) -> None:
    image = (ROOT / "deploy/Dockerfile").read_text()
    assert "HEALTHCHECK" in image
    assert {
        name for name, one in compose["services"].items() if "build" not in one and "healthcheck" not in one
    } == set()


def test_health_is_asked_where_it_is_served(compose: dict[str, Any]) -> None:
    """The image's check, the metrics' port and the settings agree; the state API also serves its own port."""
    image = (ROOT / "deploy/Dockerfile").read_text()
    port = re.search(r"SERVERCHANGE_PROCESS_HEALTH_PORT=(\d+)", image)
    assert port is not None
    assert f"HTTPConnection('127.0.0.1', {port[1]}" in image
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())["scrape_configs"]
    ports = {job["job_name"]: job["dns_sd_configs"][0]["port"] for job in scraped}
    published = int(compose["services"]["state-api"]["ports"][0].rpartition(":")[2])
    assert ports == {one.command: published if one.command == "state-api" else int(port[1]) for one in SERVICES}
    assert f"HTTPConnection('127.0.0.1', {published}" in str(compose["services"]["state-api"]["healthcheck"])


def test_every_service_process_is_in_the_compose_file(compose: dict[str, Any]) -> None:
    commands = [service["command"] for service in compose["services"].values() if "build" in service]
    assert sorted(commands) == sorted([["topics", "apply"], *([one.command] for one in SERVICES)])


def test_every_secret_that_a_service_uses_is_declared(compose: dict[str, Any]) -> None:
    used = {secret for service in compose["services"].values() for secret in service.get("secrets", [])}
    assert used == set(compose["secrets"])


def test_secrets_are_files_that_git_and_the_builder_never_see(compose: dict[str, Any]) -> None:
    assert all(secret["file"].startswith("./deploy/secrets/") for secret in compose["secrets"].values())
    assert "deploy/secrets/" in (ROOT / ".gitignore").read_text().splitlines()
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not [line for line in ignored if line.startswith("!deploy")]


def test_the_builder_gets_all_that_the_image_copies() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    for name in " ".join(copied).split():
        assert name in allowed or any(one.startswith(f"{name}/") for one in allowed), name
        assert (ROOT / name).exists()


def test_every_variable_and_secret_of_ours_is_a_setting(compose: dict[str, Any]) -> None:
    named = {name.upper() for name in compose["secrets"] if name.startswith("serverchange_")}
    for service in compose["services"].values():
        named |= {name for name in service.get("environment", {}) if name.startswith("SERVERCHANGE_")}
    named |= set(re.findall(r"SERVERCHANGE_\w+", (ROOT / "deploy/Dockerfile").read_text()))
    assert named <= known_variables()


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_an_expression_asks_for_series_labels_and_values_that_exist(where: str, expression: str) -> None:
    _check_expression(where, expression)


def _check_expression(where: str, expression: str) -> None:
    found = list(SELECTOR.finditer(expression))
    assert found, where
    known_labels = set.union(*(SERIES[match["name"]] for match in found))
    for match in found:
        for matcher in MATCHER.finditer(match["matchers"] or ""):
            assert matcher["label"] in SERIES[match["name"]], (where, match["name"], matcher["label"])
            _check_value(match["name"], matcher["label"], matcher["operator"], matcher["value"])
    for grouping in GROUPING.finditer(expression):
        assert {label.strip() for label in grouping["labels"].split(",")} <= known_labels, where


def _check_value(name: str, label: str, operator: str, value: str) -> None:
    known = OUTCOMES.get(name, set()) if label == "outcome" else LABEL_VALUES.get(label)
    if known is None:
        return
    for one in value.split("|") if "~" in operator else [value]:
        assert one in known, (name, label, one)


def test_the_checks_of_expressions_bite() -> None:
    for wrong in (
        "serverchange_no_such_thing",
        'serverchange_lookups_total{channel="a"}',
        'serverchange_lookups_total{outcome="answerd"}',
        "sum by (what) (serverchange_lag_records)",
    ):
        with pytest.raises((AssertionError, KeyError)):
            _check_expression("here", wrong)


def test_legends_name_labels_that_the_query_keeps() -> None:
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
                kept = set.union(*(SERIES[match["name"]] for match in SELECTOR.finditer(target["expr"])))
                grouped = [
                    {label.strip() for label in one["labels"].split(",")} for one in GROUPING.finditer(target["expr"])
                ]
                assert named <= (grouped[0] if grouped else kept), (path.stem, panel["title"])


def test_alerts_have_one_name_each_a_severity_and_a_summary() -> None:
    rules = alert_rules()
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "warn"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    asked = {match["name"] for _, expression in EXPRESSIONS for match in SELECTOR.finditer(expression)}
    bases = {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in asked}
    ours = {metric.name for metric in prometheus_client.REGISTRY.collect() if metric.name.startswith("serverchange_")}
    assert ours - bases == set(), "put it on a dashboard in deploy/grafana/dashboards, or into an alert"


def test_dashboards_are_provisioned_under_ids_of_their_own() -> None:
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert {path.stem for path in DASHBOARDS} >= {"overview", "fleet", "materializer"}
    assert len({board["uid"] for board in boards}) == len(boards)
    source = yaml.safe_load((ROOT / "deploy/grafana/datasources/prometheus.yml").read_text())["datasources"][0]
    for board in boards:
        panels = board["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)
        assert {one["datasource"]["uid"] for one in panels if "datasource" in one} == {source["uid"]}
        assert all(panel["description"] for panel in panels if panel["type"] != "row")
