"""Budgets as the platform counts them: fixed windows from the first event, by account over all its links."""

from __future__ import annotations

from serverchange.events import Channel
from serverchange.simulator.budgets import Budgets, FixedWindow, Violation
from serverchange.simulator.settings import Rate, SimulatorSettings, Tier

TEN_IN_TEN = Rate(count=10, window_s=10)
FORSEN, NYMN = Channel("forsen"), Channel("nymn")


def budgets(tier: Tier = Tier.ORDINARY, **changes: object) -> Budgets:
    account = {"login": "bot", "token": "t", "tier": tier}
    return Budgets(SimulatorSettings.model_validate({"accounts": [account], **changes}))


def test_a_window_opens_with_its_first_event_and_not_by_the_clock() -> None:
    window = FixedWindow()
    assert all(window.take(TEN_IN_TEN, 9.0) for _ in range(10))
    assert not window.take(TEN_IN_TEN, 18.9)
    assert window.take(TEN_IN_TEN, 19.0)


def test_twice_the_rate_fits_around_the_end_of_a_window() -> None:
    window = FixedWindow()
    window.take(TEN_IN_TEN, 0.0)
    assert all(window.take(TEN_IN_TEN, 9.9) for _ in range(9))
    assert all(window.take(TEN_IN_TEN, 10.0) for _ in range(10))


def test_the_21st_join_of_an_ordinary_account_is_a_violation() -> None:
    account = budgets().of_account("bot")
    assert [account.take_join(FORSEN, 0.0) for _ in range(21)] == [None] * 20 + [Violation.JOIN]


def test_a_verified_account_joins_two_thousand_in_ten_seconds() -> None:
    account = budgets(Tier.VERIFIED).of_account("bot")
    assert [account.take_join(FORSEN, 0.0) for _ in range(2001)] == [None] * 2000 + [Violation.JOIN]


def test_a_budget_belongs_to_the_account_however_often_it_is_asked_for() -> None:
    accounts = budgets()
    for _ in range(20):
        accounts.of_account("bot").take_login(0.0)
    assert accounts.of_account("bot").take_login(1.0) is Violation.LOGIN
    assert accounts.of_account("other").take_login(1.0) is None


def test_anonymous_logins_of_one_address_share_a_budget() -> None:
    accounts = budgets(anonymous_tier="ordinary")
    for _ in range(20):
        accounts.of_anonymous("127.0.0.1").take_login(0.0)
    assert accounts.of_anonymous("127.0.0.1").take_login(1.0) is Violation.LOGIN
    assert accounts.of_anonymous("127.0.0.2").take_login(1.0) is None


def test_the_channel_limit_counts_distinct_channels_over_all_links() -> None:
    account = budgets(channel_limit=1).of_account("bot")
    account.entered(FORSEN)
    assert account.take_join(FORSEN, 0.0) is None
    account.entered(FORSEN)
    account.left(FORSEN)
    assert account.take_join(NYMN, 0.0) is Violation.CHANNEL_LIMIT
    account.left(FORSEN)
    assert account.take_join(NYMN, 0.0) is None


def test_over_the_message_budget_the_account_is_muted_for_half_an_hour() -> None:
    account = budgets().of_account("bot")
    channels = [Channel(f"channel_{index}") for index in range(21)]
    assert [account.take_message(channel, 0.0) for channel in channels] == [None] * 20 + [Violation.MESSAGE]
    assert account.is_muted(1799.0)
    assert not account.is_muted(1800.0)


def test_an_ordinary_account_speaks_once_a_second_in_a_channel() -> None:
    account = budgets().of_account("bot")
    account.is_repetition(FORSEN, "one", 0.0)
    assert account.take_message(FORSEN, 0.9) is Violation.MESSAGE_INTERVAL
    assert account.take_message(NYMN, 0.9) is None
    assert account.take_message(FORSEN, 1.0) is None


def test_the_same_text_within_thirty_seconds_is_a_repetition() -> None:
    account = budgets(Tier.VERIFIED).of_account("bot")
    assert not account.is_repetition(FORSEN, "hi", 0.0)
    assert account.is_repetition(FORSEN, "hi", 29.0)
    assert not account.is_repetition(FORSEN, "hi", 59.1)
    assert not account.is_repetition(NYMN, "hi", 59.2)
