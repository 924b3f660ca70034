"""Examines the platform: do its lookup routes answer, is its clock ours, is the account's token good.

Sends three requests: one that lists streams, one lookup, one about the token. The token goes over TLS alone, or to
the hosts that `platform.plaintext_token_hosts` names, as on a link.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError

from serverchange.adapters.hosts import HostRules
from serverchange.adapters.platform_api import NoInformation, PlatformApi, Reason
from serverchange.adapters.settings import PlatformSettings, ReconnectorSettings
from serverchange.cli.doctor.findings import Finding, failed, ok, skipped, warning
from serverchange.events import Channel
from serverchange.platform import TokenAnswer

PROBE: Final = Channel("serverchange")
"""A channel to ask for; an answer that it is unknown is an answer."""

VALIDATE: Final = "/oauth2/validate"
EXPIRES_SOON_S: Final = 3_600
"""The platform's user tokens live for hours, and it wants them validated once an hour."""

SKEW_WARNING_S: Final = 5.0
"""An HTTP date has whole seconds, and a cache may have held the answer for a moment."""

ANSWER_BYTES_MAX: Final = 16_384

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
        *await _check_token(platform, shard),
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


async def _check_token(platform: PlatformSettings, shard: ReconnectorSettings) -> list[Finding]:
    if shard.token is None or not shard.token.get_secret_value():  # an empty secret file is none
        return [*skipped(["token"], "no account: shards log in anonymously and read only")]
    url = urlsplit(platform.api_url)
    rules = HostRules.from_settings(platform)
    if not rules.may_send_token(url.hostname or "", tls=url.scheme == "https"):
        found = f"not sent: {platform.api_url} is no TLS, and {url.hostname} is not in platform.plaintext_token_hosts"
        return [failed("token", found, "set SERVERCHANGE_PLATFORM_API_URL to an https:// address")]
    headers = {"authorization": f"OAuth {shard.token.get_secret_value()}"}
    try:
        async with httpx.AsyncClient(
            base_url=platform.api_url,
            timeout=platform.request_timeout_s,
            follow_redirects=False,
            trust_env=url.scheme == "https",  # a token in clear must not pass a proxy that the environment names
        ) as client:
            before = time.time()
            answer = await client.get(VALIDATE, headers=headers)
    except httpx.HTTPError as error:
        found = f"{platform.api_url}{VALIDATE} does not answer: {type(error).__name__}"
        return [failed("token", found, ADVICE[Reason.UNREACHABLE])]
    judged = judge_token(answer.status_code, answer.content[:ANSWER_BYTES_MAX], account=shard.account)
    return [judged, *judge_platform_clock(answer.headers.get("date"), before)]


def judge_token(status: int, body: bytes, *, account: str) -> Finding:
    """Return the verdict on the platform's answer about the token; never repeats the token or the body."""
    if status == httpx.codes.UNAUTHORIZED:
        found = f"the platform refuses the token of {account}"
        return failed("token", found, "make a new one and rotate it: docs/operations.md, Rotate tokens")
    if status != httpx.codes.OK:
        return failed("token", f"{VALIDATE} answers {status}", OTHER_ADVICE)
    try:
        answer = TokenAnswer.model_validate_json(body)
    except ValidationError:
        return failed("token", f"{VALIDATE} answers something else than a login", OTHER_ADVICE)
    if answer.login != account:
        found = f"the token belongs to {answer.login}, not to {account}"
        return failed("token", found, "set SERVERCHANGE_RECONNECTOR_ACCOUNT to the token's login, or its own token")
    if 0 < answer.expires_in < EXPIRES_SOON_S:
        found = f"the token of {account} expires in {answer.expires_in / 60:.0f} minutes"
        return warning("token", found, "rotate it in time: docs/operations.md, Rotate tokens")
    return ok("token", f"the platform knows it as {account}")


def judge_platform_clock(date: str | None, now: float) -> Iterator[Finding]:
    """Yield a warning if the platform's `Date` is far from `now` (seconds since 1970)."""
    try:
        moment = parsedate_to_datetime(date or "")
    except ValueError:
        return
    ahead_s = moment.timestamp() - now
    if abs(ahead_s) > SKEW_WARNING_S:
        side = "ahead of" if ahead_s > 0 else "behind"
        yield warning(
            "clocks",
            f"the platform's clock is {abs(ahead_s):.0f} s {side} this host's",
            "one of the two is wrong; Retry-After dates are compared with the platform's own, so nothing breaks",
        )
