"""The faults of the peer that SPEC section 8 lists, each ruled out."""

from __future__ import annotations

import asyncio
import os

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    NotFoundError,
    RolloutConfig,
)
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.conftest import World

pytestmark = pytest.mark.asyncio

RETRY = RolloutConfig(max_attempts=3, retry_condition=["failed", "timeout", "unresponsive"])


def spans(rollout_id: str, attempt_id: str, *names: str) -> SpanBatch:
    return SpanBatch(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        spans=[Span(trace_id=os.urandom(16), span_id=os.urandom(8), name=n) for n in names],
    )


async def claim(world: World, **spec: object):
    await world.store.enqueue_rollout({"task": 1}, **spec)
    (rollout,) = await world.store.dequeue_rollouts(1, worker_id="w1")
    return rollout, rollout.latest_attempt


async def test_late_span_of_failed_attempt_leaves_the_retry_in_the_queue(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
    await world.store.add_spans(spans(rollout.rollout_id, attempt.attempt_id, "late"))
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
    (again,) = await world.store.dequeue_rollouts(1)
    assert again.rollout_id == rollout.rollout_id
    assert again.latest_attempt.sequence_number == 2


async def test_update_of_an_attempt_leaves_a_cancelled_rollout_cancelled(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    await world.store.cancel_rollouts([rollout.rollout_id])
    names = (rollout.rollout_id, attempt.attempt_id)
    update = await world.store.update_attempt(*names, metadata={"note": 1})
    assert update.stop_reason == "rollout_cancelled"
    await world.store.update_attempt(*names, status="failed")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "cancelled"
    assert await world.store.dequeue_rollouts(1) == []


async def test_requeued_rollout_goes_to_the_tail(world: World) -> None:
    first = await world.store.enqueue_rollout(1)
    second = await world.store.enqueue_rollout(2)
    await world.store.start_attempt(first.rollout_id)
    await world.store.update_rollout(first.rollout_id, status="queuing")
    claimed = await world.store.dequeue_rollouts(5)
    assert [r.rollout_id for r in claimed] == [second.rollout_id, first.rollout_id]


async def test_wait_on_a_reopened_rollout_waits_for_the_new_outcome(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="succeeded")
    again = await world.store.start_attempt(rollout.rollout_id)
    assert again.end_time is None
    stream = world.store.wait_for_rollouts([rollout.rollout_id])
    await stream.registered()
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    (finished,) = await stream.results()
    assert finished.status == "failed"
    assert finished.completion_number == 2


async def test_superseded_attempt_ends_at_its_deadline_with_an_end_time(world: World) -> None:
    rollout, attempt = await claim(world, config=RolloutConfig(timeout=10))
    await world.store.start_attempt(rollout.rollout_id)
    await world.advance(10.3)
    old = await world.store.get_attempt(rollout.rollout_id, attempt.attempt_id)
    assert old.status == "timeout"
    assert old.end_time is not None


async def test_deadline_passes_while_nobody_calls(world: World) -> None:
    rollout, attempt = await claim(world, config=RolloutConfig(unresponsive_timeout=5))
    stream = world.store.wait_for_rollouts([rollout.rollout_id])
    await stream.registered()
    await world.clock.advance(5.3)
    (finished,) = await stream.results()
    assert finished.status == "failed"
    assert finished.latest_attempt.status == "unresponsive"


async def test_batch_with_a_known_span_stores_the_rest_and_counts_as_a_heartbeat(
    world: World,
) -> None:
    rollout, attempt = await claim(world)
    batch = spans(rollout.rollout_id, attempt.attempt_id, "a")
    await world.store.add_spans(batch)
    await world.advance(3)
    more = spans(rollout.rollout_id, attempt.attempt_id, "b", "c")
    more.spans.insert(0, batch.spans[0])
    result = await world.store.add_spans(more)
    assert (result.accepted_count, result.duplicate_count) == (2, 1)
    found = [s async for s in world.store.query_spans(rollout.rollout_id)]
    assert [(s.name, s.sequence_id) for s in found] == [("a", 1), ("b", 2), ("c", 3)]
    await world.store.add_spans(batch)
    record = await world.store.get_attempt(rollout.rollout_id)
    assert record.span_count == 3
    assert record.last_heartbeat_time.timestamp() == world.clock.wall_ns() / 1e9


async def test_refused_spans_move_no_sequence_numbers(world: World) -> None:
    rollout, attempt = await claim(world)
    good = spans(rollout.rollout_id, attempt.attempt_id, "good")
    bad = spans(rollout.rollout_id, attempt.attempt_id, "x", "bad")
    bad.spans[1].span_id = b"short"
    unknown = spans("ro-nobody", attempt.attempt_id, "y")
    result = await world.store.ingest_spans([bad, unknown, good])
    assert (result.accepted_count, result.rejected_count) == (1, 3)
    found = [s async for s in world.store.query_spans(rollout.rollout_id)]
    assert [(s.name, s.sequence_id) for s in found] == [("good", 1)]
    with pytest.raises(NotFoundError):
        await world.store.allocate_sequence_ids([("ro-nobody", "latest", 1)])


async def test_what_is_handed_in_and_out_is_not_the_stores_own(world: World) -> None:
    task = {"list": [1]}
    rollout = await world.store.enqueue_rollout(task)
    task["list"].append(2)
    rollout.message.priority = 99
    rollout.message.input_json = b"0"
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.input == {"list": [1]}
    assert stored.priority == 0


async def test_two_hundred_waits_of_half_a_second_end_together(world: World) -> None:
    rollout = await world.store.enqueue_rollout(1)
    streams = [world.store.wait_for_rollouts([rollout.rollout_id], timeout=0.5) for _ in range(80)]
    await asyncio.gather(*(stream.registered() for stream in streams))
    waits = [asyncio.create_task(stream.results()) for stream in streams]
    await world.clock.advance(0.6)
    assert await asyncio.gather(*waits) == [[]] * 80
    assert all(stream.open_rollout_ids == [rollout.rollout_id] for stream in streams)


async def test_reading_while_writing_works(world: World) -> None:
    async def write() -> None:
        for n in range(40):
            await world.store.enqueue_rollout(n)

    async def read() -> None:
        for _ in range(20):
            seen = {r.rollout_id async for r in world.store.iter_rollouts(page_size=7)}
            assert len(seen) <= 160

    await asyncio.gather(*(write() for _ in range(4)), read(), read())
    assert len({r.rollout_id async for r in world.store.iter_rollouts(page_size=7)}) == 160


async def test_unknown_ids_answer_at_once_with_a_reason(world: World) -> None:
    with pytest.raises(NotFoundError) as error:
        await world.store.update_attempt("ro-nobody", "latest", status="failed")
    assert error.value.reason.endswith("ROLLOUT_NOT_FOUND")
    rollout = await world.store.enqueue_rollout(1)
    with pytest.raises(NotFoundError) as error:
        await world.store.get_attempt(rollout.rollout_id)
    assert error.value.reason.endswith("ATTEMPT_NOT_FOUND")


async def test_word_that_decided_a_rollout_is_final(world: World) -> None:
    rollout, attempt = await claim(world)
    names = (rollout.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*names, status="succeeded")
    await world.store.update_attempt(*names, status="succeeded")
    with pytest.raises(FailedPreconditionError) as error:
        await world.store.update_attempt(*names, status="failed")
    assert error.value.reason.endswith("TRANSITION_NOT_ALLOWED")
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "succeeded"
