"""Spans with the span_id of a stored span but other content: refused, counted and reported."""

from __future__ import annotations

import asyncio
import logging

import pytest
from lightningstore.v1.error_reason_pb2 import ERROR_REASON_SPAN_EXISTS
from lightningstore.v1.span_pb2 import AddSpansRequest, IngestResult, SpanBatch

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, names

pytestmark = pytest.mark.asyncio


async def add(world: World, sent: SpanBatch, request_id: str = "") -> IngestResult:
    request = AddSpansRequest(batch=sent, request_id=request_id)
    return (await world.store.call("AddSpans", request)).result


def counts(result: IngestResult) -> tuple[int, int, int, int]:
    return (
        result.accepted_count,
        result.duplicate_count,
        result.rejected_count,
        result.conflict_count,
    )


async def test_span_with_a_known_id_and_other_content_is_no_duplicate(world: World) -> None:
    rollout, attempt = await claim(world)
    own = (rollout.rollout_id, attempt.attempt_id)
    first = batch(*own, "a", "b")
    await add(world, first)
    second = batch(*own, "new", "other", "b")
    second.spans[1].span_id = first.spans[0].span_id
    second.spans[2].CopyFrom(first.spans[1])
    result = await add(world, second)
    assert counts(result) == (1, 1, 1, 1)
    (rejection,) = result.rejections
    assert rejection.reason == ERROR_REASON_SPAN_EXISTS
    assert rejection.span_count == 1
    assert first.spans[0].span_id.hex() in rejection.message
    assert await names(world, rollout.rollout_id) == ["a", "b", "new"]


async def test_client_is_told_of_conflicts(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    assert (await world.store.add_spans(sent)).conflict_count == 0
    sent.spans[0].name = "other"
    result = await world.store.add_spans(sent)
    assert (result.duplicate_count, result.rejected_count, result.conflict_count) == (1, 1, 1)


async def test_conflict_within_a_batch_is_seen(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b", "c")
    sent.spans[2].span_id = sent.spans[0].span_id
    assert counts(await add(world, sent)) == (2, 0, 1, 1)
    assert await names(world, rollout.rollout_id) == ["a", "b"]


async def test_conflicts_are_seen_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    await add(world, sent)
    await world.restart()
    sent.spans[0].name = "other"
    assert counts(await add(world, sent)) == (0, 1, 1, 1)


async def test_the_order_of_fields_on_the_wire_is_no_other_content(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    await add(world, sent)
    span = sent.spans[0]
    name, rest = type(span)(name=span.name), type(span)()
    rest.CopyFrom(span)
    rest.ClearField("name")
    turned = name.SerializeToString() + rest.SerializeToString()
    head = SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id)
    again = SpanBatch.FromString(head.SerializeToString() + b"\x12" + bytes([len(turned)]) + turned)
    assert counts(await add(world, again)) == (0, 1, 0, 0)


async def test_conflict_on_a_stream_is_counted_with_its_message(world: World) -> None:
    rollout, attempt = await claim(world)
    first = batch(rollout.rollout_id, attempt.attempt_id, "a")
    second = batch(rollout.rollout_id, attempt.attempt_id, "b")
    second.spans[0].span_id = first.spans[0].span_id
    result = await world.store.ingest_spans([first, second, first])
    assert (result.accepted_count, result.duplicate_count, result.rejected_count) == (1, 1, 1)
    assert [(r.message_index, r.span_count) for r in result.rejections] == [(1, 1)]


async def test_refused_spans_are_logged_once_and_counted(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    rollout, attempt = await claim(world)
    with caplog.at_level(logging.WARNING):
        await world.store.ingest_spans(
            [batch("ro-nope", "at-nope", "a", "b") for _ in range(5)]
            + [batch(rollout.rollout_id, "at-nope", "a")]
        )
    lines = [record.getMessage() for record in caplog.records if "rejected" in record.getMessage()]
    assert len(lines) == 1
    assert "rollout_not_found" in lines[0]
    assert "ro-nope" in lines[0]
    assert world.service is not None
    store = world.service
    assert store.ingest.refused_spans.total == {"rollout_not_found": 10, "attempt_not_found": 1}
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        store.ingest.refused_spans.flush()
    (record,) = caplog.records
    assert record.getMessage().startswith("9 span(s) rejected: 8 rollout_not_found")


async def test_calls_that_repeat_each_other_at_the_same_time_get_one_answer(world: World) -> None:
    rollout, attempt = await claim(world)
    if world.durable:
        await world.restart()  # span ids have to be loaded, so that the calls wait
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    results = await asyncio.gather(*[add(world, sent, "same") for _ in range(15)])
    assert {counts(result) for result in results} == {(2, 0, 0, 0)}
    assert await names(world, rollout.rollout_id) == ["a", "b"]
