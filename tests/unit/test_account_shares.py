"""Which account joins which channel."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverchange.events import Channel
from serverchange.tracker.account_shares import share_out

A, B, C = (Channel(f"channel_{name}") for name in "abc")


def test_new_channels_go_to_the_account_with_the_fewest() -> None:
    shares = share_out(
        [(A, None), (B, None), (C, None)], known={}, counts={"x": 2, "y": 1}, accounts=("x", "y"), limit=0
    )
    assert shares == {A: "y", B: "x", C: "y"}


def test_a_channel_keeps_its_account_even_where_that_is_full() -> None:
    shares = share_out([(A, None), (B, None)], known={A: "x"}, counts={"x": 1, "y": 0}, accounts=("x", "y"), limit=1)
    assert shares == {A: "x", B: "y"}


def test_a_channel_that_asks_for_an_account_gets_that_or_none() -> None:
    shares = share_out([(A, "x"), (B, "x"), (C, "z")], known={}, counts={"x": 1}, accounts=("x", "y"), limit=2)
    assert shares == {A: "x"}


def test_a_channel_that_asks_for_another_account_leaves_room_behind() -> None:
    shares = share_out([(A, "y"), (B, "x")], known={A: "x"}, counts={"x": 1}, accounts=("x", "y"), limit=1)
    assert shares == {A: "y", B: "x"}


def test_the_channels_of_an_account_that_is_no_more_go_to_others() -> None:
    assert share_out([(A, None)], known={A: "gone"}, counts={"gone": 1}, accounts=("x",), limit=1) == {A: "x"}


@pytest.mark.parametrize("limit", [0, 1])
def test_without_accounts_nobody_joins(limit: int) -> None:
    assert share_out([(A, None)], known={}, counts={}, accounts=(), limit=limit) == {}


names = st.sampled_from([Channel(f"channel_{number}") for number in range(12)])
accounts = st.sampled_from(["x", "y", "z"])


@given(
    st.lists(st.tuples(names, st.none() | accounts), max_size=30),
    st.dictionaries(names, accounts | st.just("gone"), max_size=8),
    st.integers(0, 5),
)
def test_no_account_is_filled_beyond_its_limit_and_no_room_is_left_unused(
    asking: list[tuple[Channel, str | None]], known: dict[Channel, str], limit: int
) -> None:
    counts = Counter(known.values())
    shares = share_out(asking, known=known, counts=counts, accounts=("x", "y", "z"), limit=limit)
    after = Counter((known | shares).values())
    for account in ("x", "y", "z"):
        assert limit == 0 or after[account] <= max(limit, counts[account])
    assert shares.keys() <= dict(asking).keys()
    assert set(shares.values()) <= {"x", "y", "z"}
    unplaced = [channel for channel, must in asking if must is None and channel not in shares]
    if unplaced and all(must is None for _, must in asking):  # nobody left an account while we asked
        assert all(after[account] >= limit > 0 for account in ("x", "y", "z"))
