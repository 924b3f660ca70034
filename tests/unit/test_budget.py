"""The fleet's budget: arithmetic on a ledger."""

import pytest

from serverchange.tracker.budget import (
    LEASE_S,
    LIMITS,
    UNREPORTED_S,
    AccountClass,
    Grant,
    Kind,
    Lease,
    Limit,
    Purse,
    Usage,
    counted,
    plan_lease,
    published_limits,
    usage_by_holder,
    what_if,
)

LIMIT = Limit(count=100, window_s=10)
ORDINARY = published_limits(AccountClass.ORDINARY)


def test_a_portion_is_two_percent_and_at_least_one():
    assert LIMIT.portion == 2
    assert LIMITS[AccountClass.ORDINARY, Kind.JOIN].portion == 1
    assert LIMITS[AccountClass.VERIFIED, Kind.JOIN].portion == 40


def test_a_request_gets_what_it_wants_up_to_a_portion():
    assert plan_lease([], LIMIT, 1, now=0) == Grant(1, 0)
    assert plan_lease([], LIMIT, 50, now=0) == Grant(2, 0)


def test_a_lease_that_is_not_reported_counts_in_full():
    assert counted([Lease(2, granted_at=0)], LIMIT, now=UNREPORTED_S) == 2


def test_a_lease_never_reported_is_free_again_after_the_longest_pause_and_a_window():
    lease = Lease(2, granted_at=0)
    assert counted([lease], LIMIT, now=UNREPORTED_S + 10.9) == 2
    assert counted([lease], LIMIT, now=UNREPORTED_S + 11) == 0


def test_a_report_frees_what_was_not_spent_at_once_and_the_rest_after_a_window():
    lease = Lease(2, granted_at=0, reported_at=3, spent=1)
    assert counted([lease], LIMIT, now=3) == 1
    assert counted([lease], LIMIT, now=13.9) == 1
    assert counted([lease], LIMIT, now=14) == 0


def test_a_spent_budget_says_when_to_ask_again():
    leases = [Lease(2, granted_at=at, reported_at=at, spent=2) for at in range(50)]
    spent = [Lease(2, granted_at=0, reported_at=0, spent=2) for _ in range(50)]
    assert plan_lease(spent, LIMIT, 5, now=4) == Grant(0, 7)
    assert plan_lease(spent, LIMIT, 5, now=11) == Grant(2, 0)
    assert plan_lease(leases, LIMIT, 5, now=50).amount == 2


def test_a_purse_is_void_after_its_time_counted_from_before_it_asked():
    purse = Purse.of_grant(2, asked_at=100)
    purse, taken = purse.take(1, now=100 + LEASE_S - 0.1)
    assert (taken, purse.left, purse.spent) == (1, 1, 1)
    purse, taken = purse.take(1, now=100 + LEASE_S)
    assert (taken, purse.spent) == (0, 1)
    assert purse.is_over(now=100 + LEASE_S)


def test_a_purse_never_gives_more_than_it_holds():
    purse, taken = Purse.of_grant(2, asked_at=0).take(5, now=1)
    assert taken == 2
    assert purse.is_over(now=1)


@pytest.mark.parametrize(
    ("account_class", "hours"),
    [(AccountClass.ORDINARY, 27.78), (AccountClass.KNOWN, 27.78), (AccountClass.VERIFIED, 0.2778)],
)
def test_two_hundred_thousand_channels_take_the_known_time(account_class, hours):
    answer = what_if(200_000, published_limits(account_class))
    assert answer.links == 2223
    assert answer.join_s / 3600 == pytest.approx(hours, rel=0.001)
    assert answer.paced_s >= answer.join_s


def test_a_budget_that_covers_all_takes_no_time():
    assert what_if(0, ORDINARY).paced_s == 0
    assert what_if(20, ORDINARY).paced_s == 0
    assert what_if(21, ORDINARY).paced_s == 11


def test_what_holders_take_is_together_what_counts():
    limit = Limit(100, 10)
    leases = [
        ("a", Lease(5, 0.0)),
        ("b", Lease(5, 0.0, 1.0, spent=3)),
        ("a", Lease(5, 2.0, 3.0, spent=5)),
        ("c", Lease(5, 2.0, 3.0, spent=0)),
    ]
    usages = usage_by_holder(leases, limit, 13.0)
    assert usages == {"a": Usage(used=5, leased=5)}
    assert counted([lease for _, lease in leases], limit, 13.0) == 10
