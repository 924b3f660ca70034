"""Which JOIN goes first when the budget lets only some go."""

from serverchange.adapters.fleet_cluster import FleetCluster, Urgency
from serverchange.events import Channel, Cluster
from serverchange.tracker.handover_words import NO_LINKS, Join

MAIN = Cluster("main")


def cluster_of(**urgencies: Urgency) -> FleetCluster:
    cluster = FleetCluster(MAIN, "bot", 90)
    for ticket, (name, urgency) in enumerate(urgencies.items(), 1):
        cluster.wish(Channel(name), Join(ticket, MAIN, NO_LINKS), urgency)
    return cluster


def order_of(cluster: FleetCluster) -> list[str]:
    found = []
    while (channel := cluster.first_waiting()) is not None:
        found.append(channel)
        cluster.withdraw(channel)
    return found


def test_live_channels_go_first_then_the_busiest_then_who_asked_first() -> None:
    cluster = cluster_of(
        early=Urgency.of(live=False, in_vain=0, lines=0),
        late=Urgency.of(live=False, in_vain=0, lines=0),
        busy=Urgency.of(live=False, in_vain=0, lines=900),
        live=Urgency.of(live=True, in_vain=0, lines=1),
        live_and_busy=Urgency.of(live=True, in_vain=0, lines=5),
    )
    assert order_of(cluster) == ["live_and_busy", "live", "busy", "early", "late"]


def test_a_channel_whose_joins_did_not_last_goes_behind_those_not_tried() -> None:
    cluster = cluster_of(
        busy_but_cut=Urgency.of(live=False, in_vain=1, lines=900),
        untried=Urgency.of(live=False, in_vain=0, lines=0),
    )
    assert order_of(cluster) == ["untried", "busy_but_cut"]


def test_a_newer_wish_takes_the_place_of_the_channels_older_one() -> None:
    quiet = Urgency.of(live=False, in_vain=0, lines=0)
    cluster = cluster_of(first=quiet, second=quiet)
    for ticket in range(10, 30):
        cluster.wish(Channel("first"), Join(ticket, MAIN, NO_LINKS), quiet)
    assert cluster.waiting == 2
    assert order_of(cluster) == ["second", "first"]


def test_a_channel_that_goes_live_while_it_waits_goes_before_all_that_are_not() -> None:
    quiet, busy = (Urgency.of(live=False, in_vain=0, lines=lines) for lines in (0, 50))
    cluster = cluster_of(busy=busy, quiet=quiet)
    cluster.hurry(Channel("quiet"), Urgency.of(live=True, in_vain=0, lines=0))
    cluster.hurry(Channel("unknown"), Urgency.of(live=True, in_vain=0, lines=0))
    assert order_of(cluster) == ["quiet", "busy"]
