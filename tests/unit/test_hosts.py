"""The allow-list of servers: what links may connect to, and who may see a token."""

from ipaddress import ip_address

import pytest

from serverchange.adapters.host_resolution import Endpoint, resolve_server
from serverchange.adapters.hosts import HostRefused, HostRules, Server, parse_server
from serverchange.adapters.settings import PlatformSettings

RULES = HostRules.from_settings(PlatformSettings())
DEMO_RULES = HostRules.from_settings(
    PlatformSettings(allowed_networks=("127.0.0.0/8",), plaintext_token_hosts=("127.0.0.1",))
)


def server(entry: str) -> Server:
    return parse_server(entry, default_port=6697)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("irc.chat.twitch.tv:6667", Server("irc.chat.twitch.tv", 6667)),
        ("irc.chat.twitch.tv", Server("irc.chat.twitch.tv", 6697)),
        ("IRC.Chat.Twitch.TV:443", Server("irc.chat.twitch.tv", 443)),
        ("199.9.250.229:80", Server("199.9.250.229", 80)),
        ("[2001:DB8::1]:6697", Server("2001:db8::1", 6697)),
        ("[::1]", Server("::1", 6697)),
    ],
)
def test_an_entry_names_a_host_and_a_port(entry: str, expected: Server) -> None:
    assert server(entry) == expected
    assert server(str(expected)) == expected


@pytest.mark.parametrize(
    "entry",
    [
        "",
        ":6667",
        "irc.chat.twitch.tv:",
        "irc.chat.twitch.tv:0",
        "irc.chat.twitch.tv:22",
        "irc.chat.twitch.tv:65536",
        "irc.chat.twitch.tv:99999999",
        "irc.chat.twitch.tv:6667abc",
        "irc.chat.twitch.tv:٦٦٦٧",
        "irc.chat.twitch.tv:+6667",
        "irc.chat.twitch.tv:6667:6667",
        "irc.chat.twitch.tv@evil.example:6697",
        "user:pass@irc.chat.twitch.tv:6697",
        "evil.example#irc.chat.twitch.tv:6697",
        "evil.example/irc.chat.twitch.tv:6697",
        "evil.example\\.irc.chat.twitch.tv:6697",
        "evil.example\0.irc.chat.twitch.tv:6697",
        "evil.example\n.irc.chat.twitch.tv:6697",
        "irc.chat.twitch.tv:6697\n",
        " irc.chat.twitch.tv:6697",
        "irc.chat.twitch.tv.:6697",
        ".irc.chat.twitch.tv:6697",
        "irc..chat.twitch.tv:6697",
        "-irc.chat.twitch.tv:6697",
        "irc.chat.twıtch.tv:6697",
        "irc。chat.twitch.tv:6697",
        "a" * 64 + ".irc.chat.twitch.tv:6697",
        "a." * 200 + "irc.chat.twitch.tv:6697",
        "x" * 100_000,
        "127.1:6667",
        "2130706433:6667",
        "0x7f.0.0.1:6667",
        "0x7f000001:6667",
        "0177.0.0.1:6667",
        "127.0.0.1.:6667",
        "irc.chat.twitch.tv.0x7f:6667",
        "[127.0.0.1]:6667",
        "[::1%eth0]:6667",
        "[::1",
        "::1:6667",
        "[irc.chat.twitch.tv]:6667",
    ],
)
def test_what_is_no_entry_is_refused(entry: str) -> None:
    with pytest.raises(HostRefused):
        server(entry)


@pytest.mark.parametrize(
    "entry", ["irc.chat.twitch.tv:6697", "eu.irc.chat.twitch.tv:6697", "irc-ws.chat.twitch.tv:443"]
)
def test_names_under_an_allowed_suffix_are_allowed(entry: str) -> None:
    RULES.check_host(server(entry))


@pytest.mark.parametrize(
    "entry",
    [
        "irc.chat.twitch.tv.evil.example:6697",
        "evilirc.chat.twitch.tv:6697",
        "chat.twitch.tv:6697",
        "twitch.tv:6697",
        "localhost:6667",
        "127.0.0.1:6667",
        "169.254.169.254:80",
        "8.8.8.8:6667",
        "[::1]:6667",
        "[::ffff:127.0.0.1]:6667",
    ],
)
def test_other_hosts_are_refused(entry: str) -> None:
    with pytest.raises(HostRefused):
        RULES.check_host(server(entry))


def test_a_network_allows_addresses_by_number_and_nothing_else() -> None:
    DEMO_RULES.check_host(server("127.0.0.1:6667"))
    DEMO_RULES.check_address(ip_address("127.0.0.53"))
    for entry in ("10.0.0.1:6667", "localhost:6667", "[::1]:6667", "[::ffff:127.0.0.1]:6667"):
        with pytest.raises(HostRefused):
            DEMO_RULES.check_host(server(entry))


@pytest.mark.parametrize("address", ["52.40.1.2", "2607:f8b0:4005:80b::200e", "64:ff9b::3428:102"])
def test_public_addresses_are_allowed(address: str) -> None:
    RULES.check_address(ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fe80::1%1",
        "ff02::1",
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(HostRefused):
        RULES.check_address(ip_address(address))


def test_a_list_is_sorted_into_allowed_and_refused() -> None:
    servers, refused = RULES.allowed(
        ["irc.chat.twitch.tv:6667", "169.254.169.254:80", "irc.chat.twitch.tv:22", "irc.chat.twitch.tv"],
        default_port=6697,
    )
    assert servers == [Server("irc.chat.twitch.tv", 6667), Server("irc.chat.twitch.tv", 6697)]
    assert len(refused) == 2


def test_a_token_needs_tls_or_a_named_host() -> None:
    assert RULES.may_send_token("irc.chat.twitch.tv", tls=True)
    assert not RULES.may_send_token("irc.chat.twitch.tv", tls=False)
    assert DEMO_RULES.may_send_token("127.0.0.1", tls=False)
    assert not DEMO_RULES.may_send_token("127.0.0.2", tls=False)


def test_a_setting_that_is_no_network_is_named() -> None:
    with pytest.raises(ValueError, match=r"allowed_networks.*10\.0\.0\.1/8"):
        HostRules.from_settings(PlatformSettings(allowed_networks=("10.0.0.1/8",)))


async def test_a_name_is_resolved_once_and_the_checked_address_returned() -> None:
    asked: list[str] = []

    async def resolver(name: str) -> list[str]:
        asked.append(name)
        return ["52.40.1.2", "52.40.1.3"]

    irc = server("irc.chat.twitch.tv:6697")
    endpoints = await resolve_server(RULES, irc, resolver=resolver)
    assert endpoints == (Endpoint(irc, ip_address("52.40.1.2")), Endpoint(irc, ip_address("52.40.1.3")))
    assert asked == ["irc.chat.twitch.tv"]


async def test_one_private_address_refuses_the_name() -> None:
    async def resolver(_name: str) -> list[str]:
        return ["52.40.1.2", "127.0.0.1"]

    with pytest.raises(HostRefused, match=r"irc\.chat\.twitch\.tv:6697 resolves to 127\.0\.0\.1"):
        await resolve_server(RULES, server("irc.chat.twitch.tv:6697"), resolver=resolver)


async def test_a_refused_name_is_never_resolved() -> None:
    async def resolver(_name: str) -> list[str]:
        raise AssertionError("resolving a stranger's name already tells them we exist")

    with pytest.raises(HostRefused):
        await resolve_server(RULES, server("evil.example:6697"), resolver=resolver)


async def test_a_name_without_addresses_is_unavailable_rather_than_refused() -> None:
    async def resolver(_name: str) -> list[str]:
        return []

    with pytest.raises(OSError, match="no address"):
        await resolve_server(RULES, server("irc.chat.twitch.tv:6697"), resolver=resolver)


async def test_an_allowed_address_needs_no_resolver() -> None:
    irc = server("127.0.0.1:6667")
    assert await resolve_server(DEMO_RULES, irc) == (Endpoint(irc, ip_address("127.0.0.1")),)
