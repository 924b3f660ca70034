"""What decoding a batch leaves behind."""

from __future__ import annotations

import gc
from typing import NamedTuple

import pytest

from serverchange.adapters.cycle_collection import rare_cycle_collection
from serverchange.events import Rejected
from serverchange.materializer.folding import decode_records


class Record(NamedTuple):
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@pytest.mark.parametrize("value", [b"{", b"\xff", None, b'{"specversion":"1.0"}'])
def test_a_bad_record_keeps_no_other_record_of_its_batch_alive(value: bytes | None) -> None:
    """An exception that is kept keeps its frames, and theirs held the whole batch until the collector came."""
    (bad,) = decode_records([Record(0, 1, b"forsen", value)])
    assert isinstance(bad.event, Rejected)
    assert (bad.event.__traceback__, bad.event.__cause__, bad.event.__context__) == (None, None, None)


def test_looking_for_cycles_rarely_ends_with_the_work() -> None:
    before = gc.get_threshold()
    with rare_cycle_collection():
        assert gc.get_threshold()[0] > before[0]
        assert gc.isenabled()
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
