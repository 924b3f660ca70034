"""Live and silent: a doubt, and a ghost only where there used to be lines."""

from serverchange.reconnector.silence import CHATTY_LINES, SILENT_AFTER_S, SilenceWatch


def test_a_live_channel_without_a_line_is_told_once_a_live_session():
    watch = SilenceWatch()
    watch.set_live("a", live=True, now=0)
    assert watch.silent(SILENT_AFTER_S - 1) == []
    assert watch.silent(SILENT_AFTER_S) == [("a", False)]
    assert watch.silent(10 * SILENT_AFTER_S) == []
    watch.set_live("a", live=False, now=20_000)
    watch.set_live("a", live=True, now=30_000)
    assert watch.silent(30_000 + SILENT_AFTER_S) == [("a", False)]


def test_a_channel_that_used_to_bring_lines_is_a_ghost():
    watch = SilenceWatch()
    watch.set_live("a", live=True, now=0)
    for number in range(CHATTY_LINES):
        watch.heard("a", number)
    last = CHATTY_LINES - 1
    assert watch.silent(last + SILENT_AFTER_S - 1) == []
    assert watch.silent(last + SILENT_AFTER_S) == [("a", True)]


def test_a_channel_that_is_not_live_may_be_silent():
    watch = SilenceWatch()
    watch.heard("a", 0)
    assert watch.silent(1e6) == []
    watch.set_live("a", live=True, now=1e6)
    watch.forget("a")
    assert watch.silent(1e9) == []


def test_hearing_twice_that_it_is_live_starts_nothing_anew():
    watch = SilenceWatch()
    watch.set_live("a", live=True, now=0)
    watch.set_live("a", live=True, now=SILENT_AFTER_S - 1)
    assert watch.silent(SILENT_AFTER_S) == [("a", False)]
