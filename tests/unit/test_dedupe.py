"""Each line once, whatever links bring it, in bounded memory."""

import pytest

from serverchange.irc.line import parse_line
from serverchange.tracker.dedupe import (
    NOTICE_REPEAT_S,
    PENDING_MAX,
    Arrival,
    LineMemory,
    NoticeBrake,
    OverlapWitness,
    StateMemory,
)

CLEARCHAT = b"@room-id=1;target-user-id=2;tmi-sent-ts=3 :tmi.twitch.tv CLEARCHAT #a :b"


def chat(message_id, text="hi"):
    return parse_line(f"@id={message_id};tmi-sent-ts=1 :v!v@v PRIVMSG #a :{text}".encode())


def arrivals(memory, *lines):
    """Each line as (bytes or Line, link, now); the answers in order."""
    return [
        memory.arrive("a", parse_line(line) if isinstance(line, bytes) else line, link, now).new
        for line, link, now in lines
    ]


def test_a_message_on_two_links_is_delivered_once():
    assert arrivals(LineMemory(), (chat(1), 1, 0), (chat(1), 2, 1), (chat(2), 2, 1)) == [True, False, True]


def test_a_message_repeated_on_one_link_is_delivered_once():
    assert arrivals(LineMemory(), (chat(1), 1, 0), (chat(1), 1, 1)) == [True, False]


def test_one_id_in_two_channels_is_two_lines():
    memory = LineMemory()
    assert memory.arrive("a", chat(1), 1, 0).new
    assert memory.arrive("b", chat(1), 1, 0).new


def test_a_line_without_id_is_told_by_its_time_and_target():
    """justlog 186: a CLEARCHAT that came on two links was logged twice."""
    assert arrivals(LineMemory(), (CLEARCHAT, 1, 0), (CLEARCHAT, 2, 0)) == [True, False]


@pytest.mark.parametrize(
    "other",
    [
        CLEARCHAT.replace(b"sent-ts=3", b"sent-ts=4"),
        CLEARCHAT.replace(b"user-id=2", b"user-id=5"),
        CLEARCHAT.replace(b":b", b":c"),
        CLEARCHAT.replace(b"CLEARCHAT", b"CLEARMSG"),
        CLEARCHAT.replace(b"target-user-id", b"target-msg-id").replace(b"=2", b"=9"),
    ],
)
def test_lines_that_differ_in_any_part_are_two(other):
    assert arrivals(LineMemory(), (CLEARCHAT, 1, 0), (other, 2, 0)) == [True, True]


def test_lines_without_id_and_time_are_paired_by_their_count_on_each_link():
    notice = b"@msg-id=slow_on :tmi.twitch.tv NOTICE #a :slow"
    memory = LineMemory()
    assert arrivals(memory, (notice, 1, 0), (notice, 2, 0)) == [True, False]
    assert arrivals(memory, (notice, 1, 1), (notice, 1, 2), (notice, 2, 2)) == [True, True, False]


def test_a_line_is_remembered_for_the_whole_window():
    memory = LineMemory(window_s=60)
    assert arrivals(memory, (chat(1), 1, 0), (chat(2), 1, 59), (chat(3), 1, 61)) == [True, True, True]
    assert arrivals(memory, (chat(2), 2, 118), (chat(1), 2, 118)) == [False, False]


def test_a_line_is_forgotten_after_two_windows():
    memory = LineMemory(window_s=60)
    assert arrivals(memory, (chat(1), 1, 0), (chat(2), 1, 61), (chat(3), 1, 122), (chat(1), 1, 123)) == [True] * 4


def test_memory_is_bounded_and_says_when_it_was_too_small():
    memory = LineMemory(keys_max=100)
    assert all(arrivals(memory, *((chat(number), 1, 0) for number in range(1000))))
    assert memory.forgotten_early > 0
    assert len(memory._young) + len(memory._old) <= 100


def test_a_room_state_is_forwarded_when_it_differs():
    memory = StateMemory()
    whole = parse_line(b"@room-id=1;slow=0;r9k=0 :tmi.twitch.tv ROOMSTATE #a")
    slower = parse_line(b"@room-id=1;slow=30 :tmi.twitch.tv ROOMSTATE #a")
    assert memory.arrive("a", whole)
    assert not memory.arrive("a", whole)
    assert memory.arrive("a", slower)
    assert not memory.arrive("a", slower)
    assert memory.arrive("a", whole)
    assert memory.arrive("b", whole)
    memory.forget("a")
    assert memory.arrive("a", whole)


def test_a_user_state_is_not_new_for_its_message_id():
    memory = StateMemory()
    assert memory.arrive("a", parse_line(b"@mod=0;id=1 :tmi.twitch.tv USERSTATE #a"))
    assert not memory.arrive("a", parse_line(b"@mod=0;id=2 :tmi.twitch.tv USERSTATE #a"))


class Overlap:
    """A channel on an old link 1 and a new link 2, confirmed at 0."""

    def __init__(self):
        self.memory, self.witness = LineMemory(), OverlapWitness(settle_s=2, grace_s=5)
        self.witness.begin("a", 0)

    def hear(self, message_id, link, now):
        arrival = self.memory.arrive("a", chat(message_id), link, now)
        self.witness.heard("a", arrival, on_new=link == 2, now=now)


def test_a_line_on_the_old_side_alone_is_noticed_once():
    overlap = Overlap()
    overlap.hear(1, link=1, now=3)
    assert overlap.witness.alone(7.9) == []
    assert overlap.witness.alone(8) == ["a"]
    assert overlap.witness.alone(9) == []


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_a_line_on_both_sides_in_any_order_is_no_witness(order):
    overlap = Overlap()
    for link in order:
        overlap.hear(1, link, now=3)
    assert overlap.witness.alone(100) == []


def test_a_line_on_the_new_side_alone_is_what_we_expect():
    overlap = Overlap()
    overlap.hear(1, link=2, now=3)
    assert overlap.witness.alone(100) == []


def test_a_line_right_after_the_confirmation_is_no_witness():
    overlap = Overlap()
    overlap.hear(1, link=1, now=1.9)
    assert overlap.witness.alone(100) == []


def test_what_waits_for_its_copy_is_bounded():
    overlap = Overlap()
    for number in range(1000):
        overlap.hear(number, link=1, now=3)
    assert len(overlap.witness._pending["a"]) == PENDING_MAX


def test_without_an_overlap_nothing_is_kept():
    witness = OverlapWitness()
    witness.heard("b", Arrival(new=True, key=1), on_new=False, now=0)
    assert witness.alone(100) == []


def test_one_notice_goes_out_for_a_version_and_then_one_a_minute():
    brake = NoticeBrake()
    admitted = [brake.admit("a", "main", None, 3, now / 100) for now in range(6100)]
    assert [number for number, new in enumerate(admitted) if new] == [0, int(NOTICE_REPEAT_S * 100)]
    assert brake.held_back == 6098


def test_another_version_place_or_a_target_is_another_notice():
    brake = NoticeBrake()
    assert brake.admit("a", "main", None, 3, 0)
    assert brake.admit("a", "main", None, 4, 0)
    assert brake.admit("a", "aws", None, 4, 0)
    assert brake.admit("a", "main", "aws", 4, 0)
    assert not brake.admit("a", "main", None, 4, 0)
    assert not brake.admit("a", "main", "aws", 4, 0)
