"""The drawn transitions are those of the code."""

from pathlib import Path

from serverchange.tracker.handover import Phase
from serverchange.tracker.handover_diagram import handover_page, transition_table

PAGE = Path(__file__).parents[2] / "docs" / "handover.md"


def test_the_page_is_made_from_the_code():
    assert PAGE.read_text() == handover_page(), (
        "run: python -m serverchange.tracker.handover_diagram > docs/handover.md"
    )


def test_every_phase_is_entered_and_left():
    table = transition_table()
    assert {row.before for row in table} == {row.after for row in table} == set(Phase)


def test_a_served_channel_loses_its_last_side_by_its_link_or_by_not_being_wanted():
    ways = {row.event for row in transition_table() if row.before is Phase.SERVED and "Part" in row.commands}
    assert ways <= {"unwanted", "wanted on main", "wanted on aws"}
    assert {row.event for row in transition_table() if (row.before, row.after) == (Phase.SERVED, Phase.SEEKING)} == {
        "link lost"
    }
