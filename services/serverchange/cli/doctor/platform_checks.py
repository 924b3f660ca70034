"""Examines the platform: do its lookup routes answer, is the account's token good.

Sends three requests: one that lists streams, one lookup, one about the token. The token goes over TLS alone, or to
the hosts that `platform.plaintext_token_hosts` names, as on a link.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from serverchange.adapters.hosts import HostRules
from serverchange.adapters.platform_api import NoInformation, PlatformApi, Reason
from serverchange.adapters.settings import PlatformSettings, ReconnectorSettings
from serverchange.cli.doctor.findings import Finding, failed, ok, skipped, warning
from serverchange.events import Channel
from serverchange.platform import TokenAnswer

PROBE: Final = Channel("serverchange")
"""A channel to ask for; an answer that it is unknown is an answer."""

EXPIRES_SOON_S: Final = 3_600
"""The platform's user tokens live for hours, and it wants them validated once an hour."""

ADVICE: Final = {
    Reason.UNREACHABLE: "is SERVERCHANGE_PLATFORM_API_URL right, and does a firewall or proxy let it pass?",
    Reason.TOO_SLOW: "raise SERVERCHANGE_PLATFORM_REQUEST_TIMEOUT_S if the platform is only slow",
    Reason.THROTTLED: "lower SERVERCHANGE_PLATFORM_REQUESTS_PER_SECOND: the budget is used up by the fleet or others",
    Reason.NOT_FOUND: "is SERVERCHANGE_PLATFORM_API_URL the base of the API, without a path?",
    Reason.REDIRECTED: "redirects are never followed: set SERVERCHANGE_PLATFORM_API_URL to where it points",
    Reason.SERVER_ERROR: "the platform has a fault of its own: try later; no channel is moved meanwhile",
}
OTHER_ADVICE: Final = (
    "ask it with curl and compare with docs/architecture.md; until it answers, no channel is looked up"
)


async def check_platform(platform: PlatformSettings, shard: ReconnectorSettings) -> list[Finding]:
    """Return what is to say about the platform's API and the account's token."""
    async with PlatformApi(platform, connections_max=1) as api:
        streams = await api.fetch_live([PROBE])
        lookup = await api.fetch_cluster(PROBE)
    return [
        _judge_answer("streams", platform, streams if isinstance(streams, NoInformation) else None),
        _judge_answer(platform.lookup_via, platform, _unless_unknown(lookup)),
        *await _check_tokens(platform, shard),
    ]


def _unless_unknown(answer: object) -> NoInformation | None:
    """Return why a lookup brought nothing, None where it did or the channel is not known."""
    if isinstance(answer, NoInformation) and answer.reason is not Reason.NOT_FOUND:
        return answer
    return None


def _judge_answer(route: str, platform: PlatformSettings, failure: NoInformation | None) -> Finding:
    if failure is None:
        return ok("platform", f"{platform.api_url}: route {route} answers")
    found = f"{platform.api_url}: route {route} brings no information: {failure.reason}, {failure.detail}"
    return failed("platform", found, ADVICE.get(failure.reason, OTHER_ADVICE))


async def _check_tokens(platform: PlatformSettings, shard: ReconnectorSettings) -> list[Finding]:
    tokens = {one.login: one.token for one in shard.joining_accounts if one.token is not None}
    if not shard.accounts and shard.token is not None:
        tokens = {shard.account: shard.token}  # a token without an account is somebody's, too
    if not tokens:
        return list(skipped(["token"], "no account: shards log in anonymously and read only"))
    url = urlsplit(platform.api_url)
    if not HostRules.from_settings(platform).may_send_token(url.hostname or "", tls=url.scheme == "https"):
        found = f"not sent: {platform.api_url} is no TLS, and {url.hostname} is not in platform.plaintext_token_hosts"
        return [failed("token", found, "set SERVERCHANGE_PLATFORM_API_URL to an https:// address")]
    async with PlatformApi(platform, connections_max=1, carries_token=True) as api:
        return [judge_token(await api.fetch_token_owner(token), account=login) for login, token in tokens.items()]


def judge_token(answer: TokenAnswer | NoInformation, *, account: str) -> Finding:
    """Return the verdict on the platform's answer about the token."""
    if isinstance(answer, NoInformation):
        if answer.reason is Reason.UNAUTHORIZED:
            found = f"the platform refuses the token of {account}"
            return failed("token", found, "make a new one and rotate it: docs/operations.md, Rotate tokens")
        found = f"whose it is cannot be told: {answer.reason}, {answer.detail}"
        return failed("token", found, ADVICE.get(answer.reason, OTHER_ADVICE))
    if answer.login != account:
        found = f"the token belongs to {answer.login}, not to {account}"
        return failed("token", found, "set SERVERCHANGE_RECONNECTOR_ACCOUNT to the token's login, or its own token")
    if 0 < answer.expires_in < EXPIRES_SOON_S:
        found = f"the token of {account} expires in {answer.expires_in / 60:.0f} minutes"
        return warning("token", found, "rotate it in time: docs/operations.md, Rotate tokens")
    return ok("token", f"the platform knows it as {account}")
