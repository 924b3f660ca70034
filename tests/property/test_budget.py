"""The platform's window is kept, whatever its phase and whatever becomes of the holders."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from serverchange.tracker.budget import LEASE_S, UNREPORTED_S, Lease, Limit, Purse, plan_lease

LIMIT = Limit(count=10, window_s=10)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 5),  # time until the next request
            st.integers(1, 5),  # wanted
            st.floats(0, LEASE_S - 0.01),  # when within its lease the holder spends
            st.sampled_from(["report", "die", "pause"]),
            st.floats(0, UNREPORTED_S - LEASE_S),  # the pause of a paused holder
        ),
        min_size=1,
        max_size=60,
    )
)
def test_no_window_of_any_phase_sees_more_than_the_limit(requests):
    ledger, sent, now = [], [], 0.0
    reports = []
    for gap, wanted, spends_after, fate, pause in requests:
        now += gap
        for due, index, spent in sorted(reports):
            if due <= now and ledger[index].reported_at is None:
                ledger[index] = replace(ledger[index], reported_at=due, spent=spent)
        grant = plan_lease(ledger, LIMIT, wanted, now)
        if not grant.amount:
            continue
        ledger.append(Lease(grant.amount, granted_at=now))
        _, taken = Purse.of_grant(grant.amount, asked_at=now).take(wanted, now + spends_after)
        arrival = now + spends_after + (pause if fate == "pause" else 0)
        sent += [arrival] * taken
        if fate != "die":
            reports.append((arrival, len(ledger) - 1, taken))
    for start in sent:
        assert sum(1 for at in sent if start <= at < start + LIMIT.window_s) <= LIMIT.count
