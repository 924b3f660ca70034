"""The contract with the pinned Faust and aiokafka: whatever `runs.py` overrides or reaches into must stay as it is.

A new version that renames, re-signs or no longer calls one of these fails here, not as lost events in production.
"""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Callable
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.consumer.fetcher import Fetcher
from faust.tables.recovery import Recovery
from faust.transport import consumer as faust_consumer
from faust.transport.drivers import aiokafka as driver

from serverchange.materializer import runs

FAUST = "0.15.3"


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def source(function: Callable[..., Any]) -> str:
    return inspect.getsource(function)


def test_faust_is_the_version_whose_source_was_read():
    assert importlib.metadata.version("faust-streaming") == FAUST


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (runs.RunsThread._fetch_records, driver.AIOKafkaConsumerThread._fetch_records),
        (runs.RunsThread._seek_wait, driver.AIOKafkaConsumerThread._seek_wait),
        (runs.RunsThread._create_worker_consumer, driver.AIOKafkaConsumerThread._create_worker_consumer),
        (runs.RunsThread.__post_init__, driver.AIOKafkaConsumerThread.__post_init__),
        (runs.RunsConsumer._getmany, faust_consumer.ThreadDelegateConsumer._getmany),
        (runs.RunsConsumer.getmany, faust_consumer.Consumer.getmany),
        (runs.RunsConsumer.perform_seek, faust_consumer.Consumer.perform_seek),
        (runs.RunsConsumer.on_buffer_full, faust_consumer.Consumer.on_buffer_full),
        (runs.RunsConsumer.on_buffer_drop, faust_consumer.Consumer.on_buffer_drop),
        (runs.RunsConsumer._to_message, driver.Consumer._to_message),
        (runs.RunsConsumer._new_consumer_thread, driver.Consumer._new_consumer_thread),
        (runs.RunsApp._new_transport, faust.App._new_transport),
    ],
    ids=lambda function: function.__qualname__,
)
def test_what_we_override_has_fausts_signature(ours: Callable[..., Any], theirs: Callable[..., Any]):
    assert parameters(ours) == parameters(theirs)


@pytest.mark.parametrize(
    ("caller", "call"),
    [
        (faust_consumer.Consumer._wait_next_records, "self._getmany("),
        (faust_consumer.Consumer._drain_messages, "getmany = self.getmany"),
        (faust_consumer.Consumer._drain_messages, "get_read_offset = self._read_offset.__getitem__"),
        (faust_consumer.Consumer._drain_messages, "if r_offset is None or offset >= r_offset:"),
        (faust_consumer.Consumer.getmany, "to_message = self._to_message"),
        (faust_consumer.ThreadDelegateConsumer._getmany, "self._thread.getmany("),
        (faust_consumer.ThreadDelegateConsumer.seek_wait, "self._thread.seek_wait("),
        (faust_consumer.ThreadDelegateConsumer.__init__, "self._new_consumer_thread()"),
        (driver.AIOKafkaConsumerThread.getmany, "self._fetch_records"),
        (driver.AIOKafkaConsumerThread.seek_wait, "self._seek_wait"),
        (driver.AIOKafkaConsumerThread._create_consumer, "self._create_worker_consumer("),
        (Recovery._resume_streams, "consumer.perform_seek()"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__qualname__,
)
def test_faust_still_calls_what_we_override(caller: Callable[..., Any], call: str):
    assert call in source(caller)


def test_the_position_is_sought_before_the_flow_resumes():
    text = source(Recovery._resume_streams)
    assert text.index("consumer.perform_seek()") < text.index("consumer.resume_flow()")


def test_nothing_is_awaited_between_the_delivery_of_records_and_the_end_of_the_fetch():
    """`RunsThread._fetch_records` reads the fetcher's position right after: a seek in between would tear them apart."""
    text = source(Fetcher.fetched_records)
    behind_the_drain = text[text.index("drained[tp] = records") : text.index("waiter = self._create_fetch_waiter()")]
    assert "await" not in behind_the_drain
    assert "return await fetcher.fetched_records(" in source(driver.AIOKafkaConsumerThread._fetch_records)


def test_a_fetch_result_is_dropped_once_the_position_is_another():
    text = source(aiokafka.consumer.fetcher.FetchResult.check_assignment)
    assert "position != self._partition_records.next_fetch_offset" in text


def test_the_consumer_takes_isolation_and_wait_from_the_attributes_that_we_set():
    text = source(aiokafka.AIOKafkaConsumer.start)
    assert "isolation_level=self._isolation_level" in text
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in text


def test_faust_can_neither_remember_nor_drop_by_offset():
    offsets = runs._ForgetsOffsets()
    place = faust.types.TP("topic", 0)
    offsets[place] = 17
    offsets.update({place: 18})
    assert offsets[place] is None
    assert offsets.__getitem__(place) is None
