# ruff: noqa: PLC0415 - what one command needs is imported when it runs: --help and completion stay quick
"""`serverchange why`: what decided where a channel is believed to be, and when and why it is asked for next."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from serverchange.cli.budget import in_words
from serverchange.cli.faults import UnavailableFault
from serverchange.cli.output import ApiOption, NameArgument, Output, answering, note, print_fields, quiet_logs

if TYPE_CHECKING:
    import httpx

    from serverchange.adapters.settings import Settings
    from serverchange.events import Channel
    from serverchange.views import LookupPlan

POLLER_TIMEOUT_S: Final = 3.0


@answering
def why(out: Output, name: NameArgument, api: ApiOption = None) -> None:
    """Say why a channel is believed to be where it is, and when and why the platform is asked for it next."""
    from serverchange.adapters.settings import load_settings
    from serverchange.cli.api import Api
    from serverchange.cli.channels import parse_names

    (channel,) = parse_names([name])
    quiet_logs()
    settings, asked = load_settings(), Api(api)
    now = asked.get(f"/channels/{channel}")
    page = asked.get(f"/channels/{channel}/history", limit=1)
    decided = page["changes"][0] if page["changes"] else None
    if decided is not None:
        decided["decided_by"]["event"] = _read_event(settings, decided["decided_by"])
    plan = _find_plan(settings, channel)
    lookup = None if plan is None else plan.model_dump(mode="json")
    out.answer(
        {"channel": now, "decided": decided, "lookup": lookup},
        show=lambda: print_fields(explain(now, decided) | explain_lookup(plan)),
    )


def _read_event(settings: Settings, place: Mapping[str, int]) -> Any:
    """Return the event that stands at this place of the log; None, with a note, where Kafka does not answer."""
    from serverchange.cli.log_record import read_record
    from serverchange.cli.reach import check_kafka

    try:
        check_kafka(settings.kafka)
        return json.loads(read_record(settings.kafka, place["partition"], place["offset"]))
    except UnavailableFault as fault:
        note(f"without the event itself: {fault}")
    except ValueError:
        note("the record that decided is no JSON")
    return None


def _find_plan(settings: Settings, channel: Channel) -> LookupPlan | None:
    """Return what the poller that holds the channel says; None, with a note, where none does."""
    import psycopg

    try:
        addresses = asyncio.run(_load_addresses(settings))
    except psycopg.Error as error:
        note(f"without the next lookup: PostgreSQL, which knows where pollers answer, does not: {error}")
        return None
    plan = asyncio.run(ask_pollers(addresses, channel))
    if plan is None:
        tried = ", ".join(f"{name} at {url}" for name, url in addresses.items()) or "none runs"
        note(f"without the next lookup: no poller that answers holds the channel ({tried})")
    return plan


async def _load_addresses(settings: Settings) -> dict[str, str]:
    from serverchange.adapters.postgres.connections import connect
    from serverchange.adapters.postgres.poller_address import load_addresses

    async with await connect(settings.postgres, application="serverchange why") as connection:
        return await load_addresses(connection)


async def ask_pollers(addresses: Mapping[str, str], channel: Channel) -> LookupPlan | None:
    """Ask every poller at once; one that is gone, or does not hold the channel, has no say."""
    import httpx

    async with httpx.AsyncClient(timeout=POLLER_TIMEOUT_S, trust_env=False) as client:
        plans = await asyncio.gather(*(_ask_poller(client, url, channel) for url in addresses.values()))
    # While a partition changes hands two may hold it; the one that asks already knows more.
    return max((plan for plan in plans if plan is not None), key=lambda plan: plan.score is not None, default=None)


async def _ask_poller(client: httpx.AsyncClient, url: str, channel: Channel) -> LookupPlan | None:
    import httpx
    from pydantic import ValidationError

    from serverchange.views import LookupPlan

    try:
        answer = await client.get(f"{url}/lookups/{channel}")
        return LookupPlan.model_validate_json(answer.content) if answer.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL, ValidationError):
        return None


def explain(now: Mapping[str, Any], decided: Mapping[str, Any] | None) -> dict[str, object]:
    """Return the reasons for the belief in words, by topic."""
    told: dict[str, object] = {
        "channel": now["channel"],
        "believed_on": now["cluster"],
        "status": now["status"],
        "since": now["since"],
        "verified": f"yes, last at {now['verified_at']}" if now["verified"] else "no: a lookup is wanted",
        "wanted_by": now["services"],
    }
    if now["pinned"]:
        told["pinned"] = f"{now['pinned']}, by an operator's word: it wins over all evidence"
    if now["kind"] == "group":
        told["kind"] = "group: such rooms never move"
    if decided is None:
        return told | {"decided_by": "nothing yet: no lookup has been answered"}
    record = decided["decided_by"]
    told["decided_by"] = f"channel-events, partition {record['partition']}, offset {record['offset']}"
    event = record.get("event")
    if event is not None:
        told["it_said"] = f"{event['type']} from {event['source']}: {json.dumps(event['data'])}"
    told["evidence"] = decided["evidence"]
    return told


def explain_lookup(plan: LookupPlan | None) -> dict[str, object]:
    """Return when and why the channel is asked next, in words, by topic."""
    if plan is None:
        return {"asked_next": "not known"}
    if plan.score is None:
        return {"asked_next": plan.reason, "by": plan.poller}
    told: dict[str, object] = {
        "asked_next": f"{_when(plan)}: {plan.reason}",
        "by": plan.poller,
        "score": f"{plan.score:.4g} s of exposure that a lookup now is expected to save",
    }
    told |= {f"  {source}": f"{worth:.4g} s" for source, worth in plan.sources.items()}
    return told | {f"  {name}": f"{value:.4g}" for name, value in plan.parts.items()}


def _when(plan: LookupPlan) -> str:
    if plan.next_lookup_in_s is None:
        return "not within years"
    return "now" if plan.next_lookup_in_s < 1 else f"in about {in_words(plan.next_lookup_in_s)}"
