"""Spans of tracers: batches, in order with all other calls, and connections that stores share."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import agentlightning as agl
import pytest
from agentlightning.types import AttemptedRollout, Span
from lightningstore.client import AsyncLightningStore
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.integrations.agentlightning import GrpcLightningStore, _links
from lightningstore.integrations.agentlightning._buffer import TRACER_THREAD
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider

from tests.integrations.agentlightning.conftest import LIGHT, ONE_BACK_END
from tests.integrations.agentlightning.test_spans import a_span

pytestmark = pytest.mark.asyncio
Calls = list[str]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The methods that the adapter calls, in order."""
    made: Calls = []
    inner = GrpcTransport._call

    def counted(self: GrpcTransport, method: str, stub: Any) -> Any:
        made.append(method)
        return inner(self, method, stub)

    monkeypatch.setattr(GrpcTransport, "_call", counted)
    return made


def recorded(count: int) -> list[ReadableSpan]:
    cleared = {"agentlightning.rollout_id": "", "agentlightning.attempt_id": "at-other"}
    tracer = TracerProvider(resource=Resource.create(cleared)).get_tracer("agent")
    spans = []
    for number in range(count):
        span = tracer.start_span(f"step{number}")
        span.end()
        assert isinstance(span, ReadableSpan)
        spans.append(span)
    return spans


def in_a_tracer(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine as agentlightning's span processor does."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(work())), name=TRACER_THREAD)
    thread.start()
    thread.join()
    return found[0]


def trace(store: GrpcLightningStore, rollout: AttemptedRollout, count: int) -> list[Span]:
    async def add() -> list[Any]:
        ids = rollout.rollout_id, rollout.attempt.attempt_id
        return [await store.add_otel_span(*ids, span) for span in recorded(count)]

    added: list[Span] = in_a_tracer(add)
    return added


async def test_the_span_processor_of_agentlightning_has_the_thread_that_is_looked_for() -> None:
    processor = agl.LightningSpanProcessor() if hasattr(agl, "LightningSpanProcessor") else None
    if processor is None:
        from agentlightning.tracer.otel import LightningSpanProcessor

        processor = LightningSpanProcessor()
    processor._ensure_loop()
    try:
        assert processor._loop_thread is not None
        assert processor._loop_thread.name == TRACER_THREAD
    finally:
        processor.shutdown()


async def test_the_spans_of_a_tracer_take_one_call_and_are_stored_before_the_next_one(
    store: GrpcLightningStore, calls: Calls
) -> None:
    rollout = await store.start_rollout("x")
    calls.clear()
    added = trace(store, rollout, 20)
    await store.update_attempt(rollout.rollout_id, rollout.attempt.attempt_id, status="succeeded")
    spans = list(await store.query_spans(rollout.rollout_id))
    assert [span.name for span in spans] == [f"step{number}" for number in range(20)]
    assert [span.sequence_id for span in spans] == [span.sequence_id for span in added]
    assert [span.span_id for span in spans] == [span.span_id for span in added]
    # A loaded machine may be slower than the 0.2 seconds that spans wait for each other.
    assert calls.count("IngestSpans") < 5
    assert "AllocateSequenceIds" not in calls
    assert calls.index("UpdateAttempt") > max(
        index for index, method in enumerate(calls) if method == "IngestSpans"
    )


@pytest.mark.parametrize("name", ["query_spans", "get_rollout_by_id", "query_rollouts"])
async def test_whoever_asks_this_process_sees_the_spans_before(
    store: GrpcLightningStore, name: str
) -> None:
    rollout = await store.start_rollout("x")
    trace(store, rollout, 3)
    if name == "query_spans":
        assert len(await store.query_spans(rollout.rollout_id)) == 3
    elif name == "get_rollout_by_id":
        found = await store.get_rollout_by_id(rollout.rollout_id)
        assert found is not None
        assert found.status == "running"
    else:
        (found,) = await store.query_rollouts(rollout_id_in=[rollout.rollout_id])
        assert found.status == "running"


async def test_a_span_that_is_refused_is_in_the_log_and_holds_up_nothing(
    store: GrpcLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await store.start_rollout("x")
    rollout.attempt.attempt_id = "at-nobody"
    with caplog.at_level(logging.ERROR):
        trace(store, rollout, 1)
        await store.statistics()
    assert "dropped 1 span(s)" in caplog.text
    assert "at-nobody" in caplog.text


@ONE_BACK_END
@pytest.mark.timeout(240)  # a process imports agentlightning
async def test_spans_without_an_answer_are_stored_at_the_end_of_the_process(address: str) -> None:
    program = f"""
import asyncio, multiprocessing
from lightningstore.integrations.agentlightning import GrpcLightningStore
from tests.integrations.agentlightning.test_buffer import trace

store = GrpcLightningStore({address!r})
rollout = asyncio.run(store.start_rollout("x"))
child = multiprocessing.get_context("fork").Process(target=trace, args=(store, rollout, 2))
child.start()
child.join()
trace(store, rollout, 1)
print(rollout.rollout_id)
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", program],
        env={**os.environ, **LIGHT},
        capture_output=True,
        text=True,
        check=True,
    )
    async with AsyncLightningStore(address) as client:
        spans = [span async for span in client.query_spans(done.stdout.strip())]
    assert len(spans) == 3


async def test_stores_of_one_address_share_a_connection_which_outlives_them_for_a_moment(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_links, "_look_later", lambda: None)
    first, second = GrpcLightningStore(address), GrpcLightningStore(address)
    await first.update_worker("shared")
    await second.update_worker("shared")
    link = first._holding.link
    assert second._holding.link is link
    await first.close()
    await second.update_worker("shared")
    await second.close()
    third = GrpcLightningStore(address)
    await third.update_worker("shared")
    assert third._holding.link is link, "no new channel for a new store"
    await third.close()
    link.idle_since -= _links.LINGER
    _links._close_idle()
    assert link.blocking._holder.is_closed
    await third.update_worker("shared")  # connects again
    assert third._holding.link is not link
    await third.close()


async def test_a_store_that_is_forgotten_lets_go_of_its_connection(address: str) -> None:
    keeper, store = GrpcLightningStore(address), GrpcLightningStore(address)
    link = keeper._holding.link
    await store.update_worker("shared")
    users = link.users
    del store
    assert link.users == users - 1
    await keeper.close()


async def test_a_span_with_a_number_is_returned_as_it_was_given(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout("x")
    span = a_span(rollout, sequence_id=4)
    assert await store.add_span(span) is span


async def test_a_duplicate_is_an_error_in_the_log_in_agentlightnings_words(
    store: GrpcLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await store.start_rollout("x")
    span = a_span(rollout, sequence_id=1)
    ids = rollout.rollout_id, rollout.attempt.attempt_id
    readable = recorded(1)[0]
    await store.add_span(span)
    await store.add_otel_span(*ids, readable)
    with caplog.at_level(logging.ERROR):
        assert await store.add_span(span) is None
        assert await store.add_otel_span(*ids, readable) is None
    words = [record.getMessage() for record in caplog.records]
    assert len(words) == 2
    assert words[0] == (
        f"Duplicated span added for rollout={ids[0]}, attempt={ids[1]}, span={span.span_id}. Skipping."
    )


async def test_of_a_batch_those_are_returned_that_were_stored_now(
    store: GrpcLightningStore, caplog: pytest.LogCaptureFixture
) -> None:
    rollout = await store.start_rollout("x")
    old, other = a_span(rollout, sequence_id=1), a_span(rollout, sequence_id=2)
    await store.add_many_spans([old, other])
    new = a_span(rollout, sequence_id=3)
    changed = other.model_copy(update={"name": "another"})
    with caplog.at_level(logging.ERROR):
        assert list(await store.add_many_spans([changed, new])) == [new]
        assert list(await store.add_many_spans([changed])) == []
    assert len(caplog.records) == 2
    assert {s.name for s in await store.query_spans(rollout.rollout_id)} == {"step"}
