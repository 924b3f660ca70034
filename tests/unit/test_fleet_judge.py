"""The judge of `bench fleet` finds what it is there to find."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fleet_judge import (
    Phase,
    Spell,
    find_losses,
    handover_times,
    last_hearing,
    missed_minimum,
    owner_spells,
    silence_in,
    silent_spells,
)
from fleet_world import Entry

WAVES = Phase("waves", 10.0, 20.0, whole=True)


def line(channel: str, number: int, at: float, *links: int) -> tuple[str, int, float, str, tuple[int, ...]]:
    return channel, number, at, "main", links


def test_a_line_sent_to_us_and_not_read_is_told_from_one_sent_while_we_were_not_there() -> None:
    lines = [line("a", 1, 11.0, 7), line("a", 2, 12.0, 7), line("a", 3, 13.0), line("a", 4, 25.0, 7)]
    losses = find_losses(lines, [WAVES], {"a": {1}})
    assert losses.sent == {"waves": 3, "rest": 1}
    assert losses.confirmed == {"waves": 1, "rest": 1}
    assert losses.unjoined == {"waves": 1}


def test_the_minimum_joins_the_busiest_channels_first_a_windows_worth_at_a_time() -> None:
    busy = [line("busy", number, 10.0 + number) for number in range(8)]
    quiet = [line("quiet", 1, 11.0), line("quiet", 2, 21.0)]
    leaves = {"busy": 10.0, "quiet": 10.0}
    assert missed_minimum([*busy, *quiet], leaves, 10.0, count=1, window_s=10.0) == 1
    assert missed_minimum([*busy, *quiet], leaves, 10.0, count=2, window_s=10.0) == 0


def test_nothing_is_missed_of_a_channel_whose_old_link_outlives_the_wait() -> None:
    lines = [line("busy", number, 10.5) for number in range(8)] + [line("quiet", 1, 15.0)]
    told = {"busy": 10.0, "quiet": 16.0}
    assert missed_minimum(lines, told, 10.0, count=1, window_s=10.0) == 0


def test_a_handover_lasts_from_reconnect_to_the_join_on_another_link() -> None:
    entries = [
        Entry(0, 1.0, "joined", "a", "main", 1),
        Entry(1, 2.0, "joined", "b", "main", 1),
        Entry(2, 3.0, "parted", "b", "main", 1),
        Entry(3, 11.0, "reconnect-sent", None, "main", 1, detail="5.500"),
        Entry(4, 11.25, "joined", "a", "main", 2),
        Entry(5, 11.5, "joined", "b", "main", 2),
    ]
    assert handover_times(entries, WAVES) == [0.25]
    assert last_hearing(entries, WAVES) == {"a": 16.5}


def test_a_channel_without_a_link_and_one_with_two_are_found() -> None:
    entries = [
        Entry(1, 1.0, "joined", "a", "main", 1),
        Entry(2, 1.0, "joined", "b", "main", 1),
        Entry(3, 2.0, "joined", "a", "aws", 2),
        Entry(4, 5.0, "parted", "a", "main", 1),
        Entry(5, 6.0, "link-closed", None, "main", 1),
        Entry(6, 8.0, "joined", "b", "aws", 2),
        Entry(7, 9.0, "link-closed", None, "aws", 2),
        Entry(8, 9.5, "joined", "b", "aws", 3),
    ]
    none, several = owner_spells(entries, until=12.0)
    assert none == [Spell("b", 6.0, 8.0), Spell("b", 9.0, 9.5), Spell("a", 9.0, 12.0)]
    assert several == [Spell("a", 2.0, 5.0)]


def test_a_link_that_stays_where_the_channel_no_longer_lives_hears_nothing() -> None:
    entries = [
        Entry(0, 0.5, "moved", "c", "aws"),
        Entry(1, 1.0, "joined", "a", "main", 1),
        Entry(2, 1.0, "joined", "b", "main", 1),
        Entry(3, 4.0, "moved", "a", "aws"),
        Entry(4, 6.0, "joined", "a", "aws", 2),
        Entry(5, 7.0, "parted", "a", "main", 1),
        Entry(6, 14.0, "link-closed", None, "main", 1),
    ]
    spells = silent_spells(entries, {"a": "main", "b": "main", "c": "main"}, until=30.0)
    assert spells == [Spell("a", 4.0, 6.0), Spell("b", 14.0, 30.0)]
    assert silence_in(spells, WAVES) == {"b": 6.0}
