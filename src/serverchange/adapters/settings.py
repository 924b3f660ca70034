"""The one settings loader: environment, a TOML file, secrets as files; frozen, built once in a process's `main`.

Precedence: arguments, environment (`SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS` sets `kafka.bootstrap_servers`), secret
files (folder `SERVERCHANGE_SECRETS_DIR`, file `serverchange_postgres_dsn` sets `postgres.dsn`), the TOML file that
`SERVERCHANGE_CONFIG` names, defaults. Each process takes the sections it needs as values; nothing reads the
environment later. `docs/settings.md` is generated from the descriptions here.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from serverchange.tracker.budget import LIMITS, AccountClass, Kind, Limit


class SettingsError(Exception):
    """A setting is missing or wrong; the message names it, where it came from and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(_Section):
    """How to reach Kafka, and how its topics are named and made."""

    bootstrap_servers: str = Field("127.0.0.1:9092", description="host:port list, comma separated.")
    topic_prefix: str = Field(
        "",
        pattern=r"^[a-zA-Z0-9._-]{0,100}$",
        description="Put before every topic, group and transactional id, so that several fleets share a cluster.",
    )
    partitions: int = Field(
        48, ge=1, le=10_000, description="Partitions of the keyed topics; they cap the number of shards."
    )
    replication_factor: int = Field(1, ge=1, le=9, description="Copies of each partition; 3 in production.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="As Kafka names it."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None = Field(
        None, description="Only with SASL_*."
    )
    sasl_username: str | None = Field(None, description="Only with SASL_*.")
    sasl_password: SecretStr | None = Field(None, description="Only with SASL_*.")
    ssl_cafile: Path | None = Field(None, description="CA certificates (PEM); the system's when empty.")
    request_timeout_s: float = Field(30.0, gt=0, le=300, description="Seconds for one request to a broker.")
    session_timeout_s: float = Field(
        8.0, ge=1, le=300, description="Seconds without a heartbeat until a group gives a member's partitions away."
    )


class PostgresSettings(_Section):
    """How to reach PostgreSQL."""

    dsn: SecretStr = Field(
        SecretStr("postgresql://serverchange@127.0.0.1:5432/serverchange"), description="libpq connection string."
    )
    pool_max: int = Field(8, ge=1, le=500, description="Connections of one process at most.")
    pool_timeout_s: float = Field(
        1.5, gt=0, le=60, description="Seconds that a request waits for a connection before it is told 503."
    )
    connect_timeout_s: int = Field(5, ge=1, le=60, description="Seconds for one attempt to connect.")


AccountClassName = Literal["ordinary", "known", "verified"]


def _rates(kind: Kind) -> dict[AccountClassName, int]:
    return {name: LIMITS[AccountClass(name), kind].count for name in get_args(AccountClassName)}


Rates = Annotated[dict[AccountClassName, Annotated[int, Field(ge=1, le=1_000_000)]], Field(min_length=1)]


class PlatformSettings(_Section):
    """The chat platform: its lookup APIs, its IRC servers, and which hosts may see a token."""

    api_url: str = Field(
        "http://127.0.0.1:8600",
        pattern=r"^https?://[^\s/]+$",
        description="Base URL of the servers, streams and token APIs.",
    )
    lookup_via: Literal["servers", "chat_properties"] = Field(
        "servers", description="Which of the two routes tells a channel's cluster."
    )
    request_timeout_s: float = Field(10.0, gt=0, le=60, description="Seconds for a whole answer.")
    answer_bytes_max: int = Field(
        262_144, ge=1024, description="A longer answer (also once unpacked) is no information."
    )
    requests_per_second: float = Field(
        20.0, gt=0, le=100_000, description="Budget of all lookups of the whole fleet together, requests a second."
    )
    seeds: dict[str, tuple[str, ...]] = Field(
        {"aws": ("irc.chat.twitch.tv:6697",)},
        description="Servers (host:port) of each cluster until the API names some, a JSON object.",
    )
    allowed_host_suffixes: tuple[str, ...] = Field(
        ("irc.chat.twitch.tv", "irc-ws.chat.twitch.tv"),
        description="A server's host must equal one of these or end in a dot and one of these (JSON list).",
    )
    allowed_networks: tuple[str, ...] = Field(
        (),
        description="Networks (CIDR, JSON list) where a server may be although they are private or loopback.",
    )
    plaintext_token_hosts: tuple[str, ...] = Field(
        (), description="Hosts that may get a token without TLS (JSON list); empty: tokens go over verified TLS alone."
    )
    ca_file: Path | None = Field(None, description="CA certificates (PEM) for IRC over TLS; the system's when empty.")
    transport: Literal["tls", "plain", "websocket", "websocket-tls"] = Field(
        "tls", description="How links connect; decides which ports of a servers list are used."
    )
    rate_window_s: float = Field(
        LIMITS[AccountClass.ORDINARY, Kind.JOIN].window_s,
        ge=1,
        le=3600,
        description="Seconds of the fixed window in which the platform counts JOINs and logins of an account.",
    )
    join_rates: Rates = Field(
        _rates(Kind.JOIN), description="JOINs in a window, by class of account; what is left out stays as it is."
    )
    login_rates: Rates = Field(_rates(Kind.LOGIN), description="Logins in a window, in the same way.")

    @field_validator("join_rates", "login_rates")
    @classmethod
    def _keep_the_other_classes(cls, rates: Rates, info: ValidationInfo) -> Rates:
        return _rates(Kind.JOIN if info.field_name == "join_rates" else Kind.LOGIN) | rates

    def limits(self, account_class: AccountClassName) -> dict[Kind, Limit]:
        """Return what the platform allows an account of this class."""
        return {
            Kind.JOIN: Limit(self.join_rates[account_class], self.rate_window_s),
            Kind.LOGIN: Limit(self.login_rates[account_class], self.rate_window_s),
        }


class ProcessSettings(_Section):
    """What every process has: a name, a health port, logs."""

    name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}",
        pattern=r"^[\x21-\x7e]{1,100}$",
        description="Name in events, logs and Kafka's groups; a stable name lets a restart keep its partitions.",
    )
    health_host: str = Field("127.0.0.1", description="Address of /livez, /readyz and /metrics.")
    health_port: int = Field(0, ge=0, le=65535, description="Port of them; 0 takes a free one and logs it.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level written.")
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else JSON."
    )
    trace_endpoint: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Collector of traces, OTLP over HTTP, e.g. http://collector:4318/v1/traces; empty: no traces. "
        "Needs the extra `tracing`.",
    )
    trace_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Part of the traces begun here that is kept; others are kept as their begin says.",
    )
    state_dir: Path = Field(Path(".serverchange"), description="Folder for what a process keeps on disk.")
    stop_timeout_s: float = Field(4.5, gt=0, le=3600, description="Seconds from SIGTERM to the end at the latest.")


class PollerSettings(_Section):
    """The poller: how it spends its share of the request budget."""

    concurrency: int = Field(16, ge=1, le=1000, description="Requests under way at once in one process.")
    streams_batch: int = Field(
        100, ge=1, le=100, description="Names in one streams request; the platform's limit is 100."
    )
    freshness_flush_s: float = Field(
        1.0, gt=0, le=60, description="Seconds between two writes of verified_at; one batch a write."
    )
    servers_interval_s: float = Field(
        60.0, gt=0, le=86_400, description="Seconds after which an unchanged server list of a cluster is written again."
    )
    repeat_after_s: tuple[float, ...] = Field(
        (5.0, 30.0, 120.0),
        min_length=1,
        description="Seconds between repeated questions about one channel (JSON list; the last one repeats): while it "
        "is not verified, and while lookups fail.",
    )
    time_scale: float = Field(
        1.0,
        gt=0,
        le=1_000_000,
        description="How many times faster than the clock the platform's days pass: 1, or a simulator's time scale. "
        "It moves the schedule's habits and hazards, never the seconds of the other settings.",
    )


class MaterializerSettings(_Section):
    """The materializer: its Faust worker and its outbox."""

    fetch_records_max: int = Field(4_000, ge=1, le=100_000, description="Records of one batch, one transaction each.")
    outbox_batch: int = Field(1_000, ge=1, le=100_000, description="Changes published in one Kafka transaction.")
    progress_timeout_s: float = Field(
        60.0, gt=1, le=3600, description="Seconds with records waiting and no commit until the process exits."
    )


def _none_if_empty(token: SecretStr | None) -> SecretStr | None:
    return token if token is not None and token.get_secret_value() else None


Token = Annotated[SecretStr | None, AfterValidator(_none_if_empty)]
"""An empty secret file is no token: compose files name one for shards that log in anonymously, too."""


class AccountSettings(_Section):
    """One account of a shard that has several."""

    login: str = Field(min_length=1, max_length=64)
    token: Token = None
    account_class: AccountClassName = "ordinary"


class ReconnectorSettings(_Section):
    """A bot shard: whose account it uses and how it moves channels."""

    account: str = Field("", description="Login of the account that joins; empty: an anonymous, read-only login.")
    token: Token = Field(None, description="OAuth token of the account, without the word oauth.")
    account_class: AccountClassName = Field(
        "ordinary", description="Decides the JOIN and login budgets: see platform.join_rates and platform.login_rates."
    )
    accounts: tuple[AccountSettings, ...] = Field(
        (),
        description="Several accounts that share the channels, in the place of account, token and account_class: a "
        'JSON list of {"login", "token", "account_class"}, best as a secret file. Every shard has the same.',
    )
    channels_per_account: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description="Channels that one account is in at most, over all shards; 0: any number. The platform's limit has "
        "been 100 since 2024.",
    )
    channels_per_link: int = Field(90, ge=1, le=1000, description="Channels on one connection; 50-100 in practice.")
    lines_per_link: float = Field(
        500.0,
        gt=0,
        le=1_000_000,
        description="Chat lines a second on one connection; above it its busiest channels are handed over to others.",
    )
    overlap_s: float = Field(
        20.0, ge=0, le=600, description="Seconds that the old side stays after the new one is confirmed."
    )
    confirm_timeout_s: float = Field(
        10.0, gt=0, le=120, description="Seconds from the bytes of a JOIN leaving until another link is tried."
    )
    drain_timeout_s: float = Field(
        0.0,
        ge=0,
        le=86_400,
        description="Seconds a draining shard stays at most; 0: a minute and 1.2 times what the JOIN budget needs.",
    )

    @model_validator(mode="after")
    def _accounts_are_one_way_told(self) -> ReconnectorSettings:
        logins = [one.login for one in self.accounts]
        if logins and self.account:
            raise ValueError("account and accounts are both set: name every account in accounts")
        if twice := sorted({login for login in logins if logins.count(login) > 1}):
            raise ValueError(f"accounts names {', '.join(twice)} twice")
        return self

    @property
    def joining_accounts(self) -> tuple[AccountSettings, ...]:
        """Whoever joins; none: nameless, read-only logins."""
        if self.accounts or not self.account:
            return self.accounts
        return (AccountSettings(login=self.account, token=self.token, account_class=self.account_class),)

    @property
    def account_names(self) -> str:
        """Logins of whoever joins, for people; empty: nameless."""
        return ", ".join(account.login for account in self.joining_accounts)


class ListenerSettings(_Section):
    """The IRC listener: anonymous links to hear notices for channels that no shard holds."""

    channels_per_link: int = Field(90, ge=1, le=1000, description="Channels on one connection.")
    account_class: AccountClassName = Field("ordinary", description="Budget of anonymous logins from this address.")


class ApiSettings(_Section):
    """The state-query API."""

    host: str = Field("127.0.0.1", description="Address it listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port it listens on; 0 takes a free one.")
    tokens: SecretStr = Field(
        SecretStr(""), description="Write tokens as name=SHA-256-in-hex, comma separated; two of one name may be valid."
    )
    names_max: int = Field(100_000, ge=1, le=1_000_000, description="Names in one bulk look-up.")
    body_bytes_max: int = Field(4_194_304, ge=1024, description="Bytes of a request's body.")
    streams_max: int = Field(1_000, ge=0, le=100_000, description="Streams of changes (SSE) open at once.")
    requests_per_second: float = Field(
        0.0, ge=0, le=1_000_000, description="Requests a second of one client address; 0: no limit (behind a proxy)."
    )
    track_on_lookup: bool = Field(False, description="Track an unknown channel asked for by the drop-in routes.")


class Settings(BaseSettings):
    """Everything that can be set, by section."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_prefix="SERVERCHANGE_",
        env_nested_delimiter="_",
        env_nested_max_split=1,
        nested_model_default_partial_update=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    postgres: PostgresSettings = PostgresSettings()
    platform: PlatformSettings = PlatformSettings()
    process: ProcessSettings = Field(default_factory=ProcessSettings)
    poller: PollerSettings = PollerSettings()
    materializer: MaterializerSettings = MaterializerSettings()
    reconnector: ReconnectorSettings = ReconnectorSettings()
    listener: ListenerSettings = ListenerSettings()
    api: ApiSettings = ApiSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic-settings calls by name)
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources as the module's docstring says; the TOML file is read only where one is named."""
        sources = [init_settings, env_settings, file_secret_settings]
        config = os.environ.get("SERVERCHANGE_CONFIG")
        if config:
            sources.append(TomlConfigSettingsSource(settings_cls, toml_file=Path(config)))
        return tuple(sources)


def load_settings() -> Settings:
    """Build the settings of this process; call it once, in `main`.

    Raises:
        SettingsError: a value is out of its range, or a named file is missing; names the variable.
    """
    secrets_dir = os.environ.get("SERVERCHANGE_SECRETS_DIR")
    config = os.environ.get("SERVERCHANGE_CONFIG")
    for variable, path in (("SERVERCHANGE_SECRETS_DIR", secrets_dir), ("SERVERCHANGE_CONFIG", config)):
        if path and not Path(path).exists():
            raise SettingsError(f"{variable} names {path}, which does not exist; create it or unset the variable")
    try:
        return Settings(_secrets_dir=secrets_dir)
    except ValidationError as error:
        raise SettingsError(_explain(error)) from error


def secret_file(section: str, name: str) -> Path | None:
    """Return the secret file that `section.name` is read from, None where the environment sets it or there is none.

    For the secrets that may change while a process runs; call it once, in `main`.
    """
    name = f"serverchange_{section}_{name}"
    if any(variable.lower() == name for variable in os.environ):
        return None
    path = Path(os.environ.get("SERVERCHANGE_SECRETS_DIR") or "/nonexistent", name)
    return path if path.is_file() else None


def _explain(error: ValidationError) -> str:
    lines = []
    for fault in error.errors(include_url=False, include_context=False, include_input=False):
        field = ".".join(str(part) for part in fault["loc"])
        variable = "SERVERCHANGE_" + "_".join(str(part) for part in fault["loc"][:2]).upper()
        lines.append(f"setting {field}: {fault['msg']} (set {variable}, see docs/settings.md)")
    return "\n".join(lines)
