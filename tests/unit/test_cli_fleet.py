"""What a fleet tells its processes, before any is started."""

import hashlib
import stat
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from serverchange.adapters.hosts import HostRules, parse_server
from serverchange.adapters.settings import load_settings
from serverchange.cli.demo.options import POLLER_TIME_SCALE_MAX, DemoOptions
from serverchange.cli.demo.progress import Progress, draw
from serverchange.cli.demo.run import _data_folder
from serverchange.cli.demo.watching import Sample
from serverchange.cli.faults import Fault
from serverchange.cli.fleet import PREFIX, Fleet, WriteToken, _dump_with_tokens, make_token, simulator_environment
from serverchange.cli.up import settings_text
from serverchange.events import Cluster
from serverchange.simulator.addresses import AccountToken, Addresses, ClusterAddresses
from serverchange.simulator.settings import SimulatorSettings, Tier

SERVERS = ClusterAddresses(plain="127.0.0.1:7001", tls="127.0.0.1:7002", ws="127.0.0.1:7003", wss="127.0.0.1:7004")
ADDRESSES = Addresses(
    api_url="http://127.0.0.1:7000",
    control_url="http://127.0.0.1:7010",
    ca_file="/tmp/ca.pem",
    clusters={Cluster("main"): SERVERS, Cluster("aws"): SERVERS},
    accounts=(AccountToken(login="bot_one", token="opens-nothing", tier=Tier.VERIFIED),),
)


def test_the_simulator_s_environment_is_valid_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = simulator_environment(ADDRESSES, account="bot_one") | DemoOptions().service_environment
    for name, value in environment.items():
        monkeypatch.setenv(PREFIX + name, value)

    settings = load_settings()

    assert settings.platform.seeds == {"main": ("127.0.0.1:7001",), "aws": ("127.0.0.1:7001",)}
    assert settings.reconnector.account == "bot_one"
    assert settings.reconnector.account_class == "verified"
    assert settings.poller.time_scale == POLLER_TIME_SCALE_MAX
    rules = HostRules.from_settings(settings.platform)
    rules.check_host(parse_server("127.0.0.1:7001", default_port=6667))
    assert rules.may_send_token("127.0.0.1", tls=False)


def test_without_an_account_shards_are_anonymous() -> None:
    assert "RECONNECTOR_TOKEN" not in simulator_environment(ADDRESSES, account=None)


def test_the_simulator_s_settings_survive_their_file_with_tokens() -> None:
    written = SimulatorSettings(channels=7, data_dir=Path("/tmp/x"))
    read = SimulatorSettings.model_validate_json(_dump_with_tokens(written))
    assert read == written


def test_a_write_token_is_made_once_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "api-token"
    token = make_token("up", path)
    assert make_token("up", path) == token
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token.setting == f"up={hashlib.sha256(token.token.encode()).hexdigest()}"


def test_services_of_the_demo_see_none_of_the_caller_s_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVERCHANGE_KAFKA_BOOTSTRAP_SERVERS", "production:9092")
    monkeypatch.setenv("SERVERCHANGE_CONFIG", "/etc/production.toml")
    fleet = Fleet(tmp_path, partitions=1, tell=lambda _: None)
    fleet._ports["poller"] = 1
    spec = fleet._spec("poller", WriteToken("demo", "x"))
    assert [value for value in spec.environment.values() if "production" in value] == []


def test_only_shards_get_the_account_s_token(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, partitions=1, tell=lambda _: None)
    fleet.add_environment(simulator_environment(ADDRESSES, account="bot_one"))
    fleet._ports.update({"poller": 1, "reconnector": 2})
    token = WriteToken("demo", "x")
    assert "opens-nothing" not in fleet._spec("poller", token).environment.values()
    assert "opens-nothing" in fleet._spec("reconnector", token).environment.values()


def test_the_settings_file_of_up_is_toml_that_settings_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(tmp_path / "data", partitions=3, tell=lambda _: None)
    fleet._ports["api"] = 4711
    text = settings_text(fleet, 3)
    assert tomllib.loads(text)["api"] == {"host": "127.0.0.1", "port": 4711}
    (tmp_path / "settings.toml").write_text(text)
    monkeypatch.setenv("SERVERCHANGE_CONFIG", str(tmp_path / "settings.toml"))
    settings = load_settings()
    assert settings.kafka.partitions == 3
    assert settings.postgres.dsn.get_secret_value() == fleet.stack.postgres.dsn


def quiet() -> Progress:
    return Progress(Console(quiet=True), 60.0)


def test_a_temporary_folder_is_removed_and_a_kept_one_stays() -> None:
    with _data_folder(DemoOptions(), quiet()) as gone:
        (gone / "x").touch()
    with _data_folder(DemoOptions(keep=True), quiet()) as kept:
        (kept / "x").touch()
    assert not gone.exists()
    assert (kept / "x").exists()
    (kept / "x").unlink()
    kept.rmdir()


def test_a_folder_of_the_caller_s_must_be_empty_and_stays(tmp_path: Path) -> None:
    with _data_folder(DemoOptions(data_dir=tmp_path), quiet()) as folder:
        (folder / "x").touch()
    with pytest.raises(Fault, match="is not empty"), _data_folder(DemoOptions(data_dir=tmp_path), quiet()):
        pass


@pytest.mark.parametrize("answers", [True, False])
def test_progress_draws_whether_the_api_answers_or_not(answers: bool) -> None:
    sample = Sample(
        elapsed_s=12.0,
        step="staff",
        done=False,
        moves=10,
        true_by_cluster={Cluster("main"): 490, Cluster("aws"): 10},
        believed_by_cluster={Cluster("main"): 493, Cluster("aws"): 7} if answers else None,
        mismatches=3 if answers else None,
        behind_records=0 if answers else None,
        handovers=7 if answers else None,
        live=40,
        chat_sent=1000,
        chat_read=990,
        violations=0,
    )
    console = Console(width=100)
    with console.capture() as captured:
        console.print(draw(sample, 60.0))
    assert ("493" if answers else "no answer") in captured.get()
