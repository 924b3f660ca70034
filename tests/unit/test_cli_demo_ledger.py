"""Facts from what the simulator and the topics say."""

import pytest

from serverchange.cli.demo.facts import Belief, Move, SentLine, Stay, Stream
from serverchange.cli.demo.ledger import read_history, read_lines
from serverchange.cli.demo.options import DemoOptions
from serverchange.cli.demo.progress import summarize
from serverchange.cli.demo.reader import _LINE
from serverchange.cli.demo.watching import Sample, count_mismatches, sum_metric
from serverchange.cli.faults import Fault
from serverchange.events import Channel, Cluster
from serverchange.simulator.settings import WrongCluster

BOT = {"bot_one"}


def row(kind: str, wall: float, **fields: object) -> dict[str, object]:
    return {"kind": kind, "wall": wall, **fields}


def joined(wall: float, link: int, cluster: str = "main") -> dict[str, object]:
    return row("joined", wall, channel="forsen", cluster=cluster, link=link)


LOGGED_IN = row("link-logged-in", 0.5, link=1, account="bot_one")


def test_a_stay_lasts_from_the_confirmation_to_the_part() -> None:
    rows = [LOGGED_IN, joined(1.0, 1), row("parted", 4.0, channel="forsen", cluster="main", link=1)]
    assert read_history(rows, accounts=BOT).stays == [Stay(Channel("forsen"), Cluster("main"), 1.0, 4.0)]


def test_a_stay_ends_with_its_link() -> None:
    rows = [LOGGED_IN, joined(1.0, 1), row("link-closed", 3.0, link=1, account="bot_one")]
    assert read_history(rows, accounts=BOT).stays == [Stay(Channel("forsen"), Cluster("main"), 1.0, 3.0)]


def test_a_stay_that_goes_on_has_no_end() -> None:
    assert read_history([LOGGED_IN, joined(1.0, 1)], accounts=BOT).stays == [
        Stay(Channel("forsen"), Cluster("main"), 1.0)
    ]


def test_a_second_join_of_one_link_does_not_begin_a_stay_anew() -> None:
    stays = read_history([LOGGED_IN, joined(1.0, 1), joined(2.0, 1)], accounts=BOT).stays
    assert stays == [Stay(Channel("forsen"), Cluster("main"), 1.0)]


def test_links_of_others_are_no_readers() -> None:
    rows = [row("link-logged-in", 0.5, link=1, account="justinfan1"), joined(1.0, 1)]
    history = read_history(rows, accounts=BOT)
    assert (history.stays, history.links) == ([], set())


def test_moves_streams_and_violations_are_read() -> None:
    rows = [
        row("went-live", 1.0, channel="forsen", cluster="main"),
        row("moved", 2.0, channel="xqc", previous="main", cluster="aws", detail="staff"),
        row("went-offline", 3.0, channel="forsen", cluster="main"),
        row("went-live", 5.0, channel="xqc", cluster="aws"),
        row("violation", 6.0, link=1, account="bot_one", detail="join"),
    ]
    history = read_history(rows, accounts=BOT)
    assert history.moves == [Move(Channel("xqc"), Cluster("main"), Cluster("aws"), 2.0)]
    assert history.streams == [Stream(Channel("forsen"), 1.0, 3.0), Stream(Channel("xqc"), 5.0)]
    assert history.violations == {"join": 1}


def test_a_line_reached_us_if_any_of_our_links_was_sent_it() -> None:
    line = {"channel": "forsen", "number": 7, "wall": 1.5, "at": 0.5, "cluster": "aws"}
    lines = read_lines([{**line, "links": [1, 2]}, {**line, "links": [3]}], links={2})
    assert lines[0] == SentLine(Channel("forsen"), 7, 1.5, Cluster("aws"), reached=True)
    assert not lines[1].reached


@pytest.mark.parametrize(
    ("line", "number"),
    [
        ("@badges=;id=abc-1;room-id=1 :a!a@a.tmi PRIVMSG #forsen :#17 forsen Kappa", 17),
        ("@id=abc-1;room-id=1 :a!a@a.tmi PRIVMSG #forsen :#1 forsen x", 1),
        ("@badges=;id=abc :a!a@a.tmi PRIVMSG #forsen :#1 xqc Kappa", None),
        ("@badges=;id=abc :a!a@a.tmi PRIVMSG #forsen :hello #1 forsen", None),
        ("@room-id=1 :tmi.twitch.tv CLEARCHAT #forsen", None),
    ],
)
def test_numbered_lines_are_told_from_others(line: str, number: int | None) -> None:
    match = _LINE.match(line)
    assert (match and int(match["number"])) == number


def test_a_metric_is_summed_over_the_series_that_match() -> None:
    text = (
        "# TYPE serverchange_handovers_total counter\n"
        'serverchange_handovers_total{cause="moved",outcome="confirmed"} 3.0\n'
        'serverchange_handovers_total{cause="reconnect",outcome="confirmed"} 4.0\n'
        "serverchange_handovers_total_created 1.7e9\n"
    )
    assert sum_metric(text, "serverchange_handovers_total", {}) == 7.0
    assert sum_metric(text, "serverchange_handovers_total", {"cause": "moved"}) == 3.0


def test_a_channel_that_nobody_knows_yet_is_believed_elsewhere() -> None:
    truth = {Channel("a"): Cluster("aws"), Channel("b"): Cluster("main")}
    believed = {Channel("a"): Belief(Cluster("aws"), "settled")}
    assert count_mismatches(truth, believed, truth) == 1


def test_the_script_fits_into_the_seconds_asked_for() -> None:
    assert DemoOptions(seconds=60.0).time_scale == 20_160.0


def test_the_lookup_budget_is_larger_where_a_lookup_is_the_only_way() -> None:
    announced, silent = DemoOptions(), DemoOptions(wrong_cluster=WrongCluster.SILENT)
    assert announced.lookups_per_second < silent.lookups_per_second <= 400.0


def test_an_unknown_mode_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Fault, match="silent, serverchange, clusterchange"):
        DemoOptions.parse(500, 1, 60.0, "loud", None, keep=False, as_json=False)


def test_a_sample_is_told_in_one_line_also_while_the_api_is_away() -> None:
    sample = Sample(
        elapsed_s=12.0,
        step="staff",
        done=False,
        moves=10,
        true_by_cluster={Cluster("main"): 490, Cluster("aws"): 10},
        believed_by_cluster=None,
        mismatches=None,
        behind_records=None,
        handovers=None,
        live=40,
        chat_sent=1000,
        chat_read=990,
        violations=0,
    )
    assert summarize(sample) == (
        "staff: aws 10, main 490; 10 moves, ? handovers, ? believed elsewhere, ? records behind, chat 990/1000"
    )
