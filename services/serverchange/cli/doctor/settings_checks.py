"""Examines the settings: what loads, what is misspelt, what contradicts itself, what is not fit for production."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from serverchange.adapters.hosts import HostRefused, HostRules, parse_server
from serverchange.adapters.settings import Settings, SettingsError
from serverchange.cli.doctor.findings import Finding, failed, ok, warning
from serverchange.state_api.tokens import parse_tokens

CHECK: Final = "settings"
PREFIX: Final = "SERVERCHANGE_"

OTHER_VARIABLES: Final = frozenset(
    {
        "SERVERCHANGE_CONFIG",
        "SERVERCHANGE_SECRETS_DIR",
        "SERVERCHANGE_CLIENT_API",
        "SERVERCHANGE_CLIENT_TOKEN",
        "SERVERCHANGE_CACHE_DIR",
        "SERVERCHANGE_MAVEN_REPOSITORY",
        "SERVERCHANGE_SUPERVISOR_FD",
    }
)
"""Variables that are no field of the settings: where they come from, the client's, the embedded servers'."""

DEFAULT_PORT: Final = 6697


def check_settings(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what is to say about settings that loaded."""
    problems = [
        *_unknown_names(environment),
        *_kafka(settings),
        *_hosts(settings),
        *_api_tokens(settings),
        *_account(settings),
    ]
    sources = [environment[name] for name in ("SERVERCHANGE_CONFIG", "SERVERCHANGE_SECRETS_DIR") if name in environment]
    own = sum(name.startswith(PREFIX) for name in environment)
    yield ok(CHECK, f"loaded: {own} variables, {', '.join(sources) or 'no file'}")
    yield from problems


def known_variables() -> set[str]:
    """Return the names of all variables that anything of ours reads."""
    names = set(OTHER_VARIABLES)
    for section, field in Settings.model_fields.items():
        names.add(f"{PREFIX}{section.upper()}")
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel):
            names |= {f"{PREFIX}{section}_{name}".upper() for name in model.model_fields}
    return names


def _unknown_names(environment: Mapping[str, str]) -> Iterator[Finding]:
    """A misspelt section is silently no setting at all: the default stands, and nobody is told."""
    known = known_variables()
    for name in sorted(environment):
        if name.startswith(PREFIX) and name.upper() not in known:
            yield warning(CHECK, f"{name} is no setting; it is ignored", _did_you_mean(name.upper(), known))
    folder = environment.get("SERVERCHANGE_SECRETS_DIR")
    for path in sorted(Path(folder).iterdir()) if folder else ():
        name = path.name.upper()
        if name.startswith(PREFIX) and name not in known:
            yield warning(CHECK, f"the secret {path} is no setting; it is ignored", _did_you_mean(name, known))


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else "unset it, or see docs/settings.md for the names"


def _kafka(settings: Settings) -> Iterator[Finding]:
    kafka = settings.kafka
    if kafka.security_protocol.startswith("SASL") and not (
        kafka.sasl_mechanism and kafka.sasl_username and kafka.sasl_password
    ):
        yield failed(
            CHECK,
            f"kafka.security_protocol is {kafka.security_protocol}, but mechanism, name or password is missing",
            "set SERVERCHANGE_KAFKA_SASL_MECHANISM, _SASL_USERNAME and _SASL_PASSWORD",
        )
    if kafka.security_protocol == "SASL_PLAINTEXT" and kafka.sasl_mechanism == "PLAIN":
        yield warning(
            CHECK,
            "Kafka's password crosses the network in clear",
            "use SASL_SSL, or at least SCRAM-SHA-512",
        )


def _hosts(settings: Settings) -> Iterator[Finding]:
    """Yield the servers in the settings to which no link would ever connect."""
    try:
        rules = HostRules.from_settings(settings.platform)
    except ValueError as error:
        yield failed(CHECK, str(error), 'write networks as a JSON list, e.g. ["10.0.0.0/8"]')
        return
    for cluster, servers in settings.platform.seeds.items():
        for server in servers:
            try:
                rules.check_host(parse_server(server, default_port=DEFAULT_PORT))
            except HostRefused as refusal:
                yield failed(
                    CHECK,
                    f"platform.seeds: no link may connect to a server of {cluster}: {refusal}",
                    "correct the seed, or allow its host: SERVERCHANGE_PLATFORM_ALLOWED_HOST_SUFFIXES",
                )


def _api_tokens(settings: Settings) -> Iterator[Finding]:
    try:
        tokens = parse_tokens(settings.api.tokens.get_secret_value())
    except SettingsError as error:
        yield failed(CHECK, str(error), "correct it; docs/operations.md has how to make and rotate tokens")
        return
    if not tokens.entries:
        yield warning(
            CHECK,
            "api.tokens is empty: nobody can write through the state API",
            "set SERVERCHANGE_API_TOKENS=name=SHA-256-in-hex, unless channels are only written by the command line",
        )


def _account(settings: Settings) -> Iterator[Finding]:
    shard = settings.reconnector
    for account in shard.joining_accounts:
        if account.token is None:
            yield failed(
                CHECK,
                f"account {account.login} has no token",
                "set it as a secret (reconnector.token or reconnector.accounts), or no account for an anonymous login",
            )
    if shard.token is not None and not shard.joining_accounts:
        yield failed(
            CHECK,
            "reconnector.token is set, but no account: shards would log in anonymously",
            "set SERVERCHANGE_RECONNECTOR_ACCOUNT to the login that the token belongs to",
        )
