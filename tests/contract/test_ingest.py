"""IngestSpans and AddSpans: what is stored, counted, refused, and what it does to the attempt."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from lightningstore.client import InvalidArgumentError, NotFoundError, Stop
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, names, query, refused, snapshot

pytestmark = pytest.mark.asyncio

BAD_SPANS = [
    ("spans[1].trace_id", Span(trace_id=b"\1" * 15, span_id=b"\1" * 8)),
    ("spans[1].trace_id", Span(trace_id=b"\1" * 17, span_id=b"\1" * 8)),
    ("spans[1].trace_id", Span(span_id=b"\1" * 8)),
    ("spans[1].trace_id", Span(trace_id=bytes(16), span_id=b"\1" * 8)),
    ("spans[1].span_id", Span(trace_id=b"\1" * 16, span_id=b"\1" * 7)),
    ("spans[1].span_id", Span(trace_id=b"\1" * 16, span_id=b"\1" * 9)),
    ("spans[1].span_id", Span(trace_id=b"\1" * 16)),
    ("spans[1].span_id", Span(trace_id=b"\1" * 16, span_id=bytes(8))),
]


def counts(result: object) -> tuple[int, int, int]:
    return result.accepted_count, result.duplicate_count, result.rejected_count


async def test_span_comes_back_as_it_was_sent(world: World) -> None:
    rollout, attempt = await claim(world)
    span = Span(
        trace_id=b"\1" * 16,
        span_id=b"\2" * 8,
        parent_span_id=b"\3" * 8,
        trace_state="a=b",
        name="call ü",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=1_700_000_000_123_456_789,
        end_time_unix_nano=1_700_000_001_123_456_789,
        attributes=[KeyValue(key="n", value=AnyValue(int_value=2**60 + 1))],
        dropped_attributes_count=3,
        events=[Span.Event(time_unix_nano=5, name="e")],
        links=[Span.Link(trace_id=b"\4" * 16, span_id=b"\5" * 8)],
        status=Status(code=Status.STATUS_CODE_ERROR, message="no"),
        flags=257,
    )
    sent = SpanBatch(
        rollout_id=rollout.rollout_id,
        attempt_id=attempt.attempt_id,
        spans=[span],
        resource=Resource(
            attributes=[KeyValue(key="service.name", value=AnyValue(string_value="s"))]
        ),
        resource_schema_url="http://r",
        scope=InstrumentationScope(name="lib", version="1"),
        schema_url="http://s",
    )
    assert counts(await world.store.add_spans(sent)) == (1, 0, 0)
    (stored,) = await query(world, rollout.rollout_id)
    assert stored.otlp == span
    assert (stored.resource, stored.scope) == (sent.resource, sent.scope)
    assert (stored._batch.resource_schema_url, stored._batch.schema_url) == ("http://r", "http://s")
    assert (stored.rollout_id, stored.attempt_id) == (rollout.rollout_id, attempt.attempt_id)
    assert stored.sequence_id == 1


async def test_fields_of_a_newer_otlp_are_kept(world: World) -> None:
    rollout, attempt = await claim(world)
    raw = Span(trace_id=b"\1" * 16, span_id=b"\2" * 8).SerializeToString()
    newer = Span.FromString(raw + b"\xfa\x3e\x03new")  # field 1007
    sent = SpanBatch(
        rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=[newer, newer]
    )
    await world.store.add_spans(sent)
    (stored,) = await query(world, rollout.rollout_id)
    assert stored.otlp.SerializeToString() == newer.SerializeToString()


async def test_first_span_makes_attempt_and_rollout_run(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.advance(3)
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "a", "b"))
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("running", "running")
    assert stored.latest_attempt.span_count == 2
    heard = stored.latest_attempt.message.last_heartbeat_time
    assert heard.ToNanoseconds() == world.clock.wall_ns()


async def test_batch_that_is_only_duplicates_is_a_heartbeat_too(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    await world.store.add_spans(sent)
    await world.advance(3)
    assert counts(await world.store.add_spans(sent)) == (0, 1, 0)
    stored = await world.store.get_attempt(rollout.rollout_id)
    assert stored.message.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns()
    assert stored.span_count == 1


async def test_batch_without_spans_is_no_heartbeat(world: World) -> None:
    rollout, attempt = await claim(world)
    before = await snapshot(world)
    await world.advance(3)
    assert counts(await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id))) == (
        0,
        0,
        0,
    )
    assert (await snapshot(world))[1] == before[1]


async def test_one_known_span_in_a_batch_is_skipped_and_the_rest_stored(world: World) -> None:
    rollout, attempt = await claim(world)
    first = batch(rollout.rollout_id, attempt.attempt_id, "known")
    await world.store.add_spans(first)
    second = batch(rollout.rollout_id, attempt.attempt_id, "a", "x", "b")
    second.spans[1].CopyFrom(first.spans[0])
    await world.advance(1)
    assert counts(await world.store.add_spans(second)) == (2, 1, 0)
    assert await names(world, rollout.rollout_id) == ["known", "a", "b"]
    numbers = [span.sequence_id for span in await query(world, rollout.rollout_id)]
    assert numbers == [1, 2, 3]
    stored = await world.store.get_attempt(rollout.rollout_id)
    assert stored.span_count == 3
    assert stored.message.last_heartbeat_time.ToNanoseconds() == world.clock.wall_ns()


async def test_same_span_twice_in_a_batch_is_stored_once(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b", "c")
    sent.spans[2].CopyFrom(sent.spans[0])
    assert counts(await world.store.add_spans(sent)) == (2, 1, 0)
    assert await names(world, rollout.rollout_id) == ["a", "b"]


async def test_duplicate_keeps_the_sequence_ids_of_its_neighbours(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b", "c", numbers=(5, 6, 9))
    await world.store.add_spans(
        SpanBatch(
            rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=[sent.spans[1]]
        )
    )
    assert counts(await world.store.add_spans(sent)) == (2, 1, 0)
    got = [(span.name, span.sequence_id) for span in await query(world, rollout.rollout_id)]
    assert got == [("b", 1), ("a", 5), ("c", 9)]


async def test_duplicates_are_known_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    await world.store.add_spans(sent)
    await world.restart()
    assert counts(await world.store.add_spans(sent)) == (0, 2, 0)
    assert await names(world, rollout.rollout_id) == ["a", "b"]


async def test_same_span_id_in_another_attempt_is_no_duplicate(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    await world.store.add_spans(sent)
    second = await world.store.start_attempt(rollout.rollout_id)
    sent.attempt_id = second.attempt.attempt_id
    assert counts(await world.store.add_spans(sent)) == (1, 0, 0)
    assert len(await query(world, rollout.rollout_id)) == 2


async def test_latest_means_the_newest_attempt_and_is_stored_by_its_id(world: World) -> None:
    rollout, _ = await claim(world)
    second = await world.store.start_attempt(rollout.rollout_id)
    await world.store.add_spans(batch(rollout.rollout_id, "latest", "a"))
    (stored,) = await query(world, rollout.rollout_id)
    assert stored.attempt_id == second.attempt.attempt_id


@pytest.mark.parametrize(("field", "bad"), BAD_SPANS)
async def test_bad_id_of_one_span_refuses_the_batch(world: World, field: str, bad: Span) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "good")
    sent.spans.append(bad)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        await world.store.add_spans(sent)
    assert await names(world, rollout.rollout_id) == []
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "next"))
    assert [span.sequence_id for span in await query(world, rollout.rollout_id)] == [1]


@pytest.mark.parametrize(("field", "bad"), BAD_SPANS)
async def test_bad_id_on_a_stream_is_counted(world: World, field: str, bad: Span) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "good")
    sent.spans.append(bad)
    good = batch(rollout.rollout_id, attempt.attempt_id, "after")
    result = await world.store.ingest_spans([sent, good])
    assert counts(result) == (1, 0, 2)
    (rejection,) = result.rejections
    assert (rejection.message_index, rejection.span_count) == (0, 2)
    assert rejection.reason == "ERROR_REASON_FIELD_INVALID"
    assert field in rejection.message
    assert await names(world, rollout.rollout_id) == ["after"]


async def test_unknown_attempt_fails_add_spans(world: World) -> None:
    rollout, _ = await claim(world)
    (waiting,) = await enqueue(world, 1)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND", "ro-nope"):
        await world.store.add_spans(batch("ro-nope", "latest", "a"))
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND", "at-nope"):
        await world.store.add_spans(batch(rollout.rollout_id, "at-nope", "a"))
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND", waiting):
        await world.store.add_spans(batch(waiting, "latest", "a"))


@pytest.mark.parametrize("field", ["rollout_id", "attempt_id"])
async def test_missing_id_is_named(world: World, field: str) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    sent.ClearField(field)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", f"batch.{field}"):
        await world.store.add_spans(sent)


async def test_missing_batch_is_refused(world: World) -> None:
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "batch"):
        await world.store.call("AddSpans", AddSpansRequest())


async def test_unknown_attempt_on_a_stream_is_counted_and_the_rest_stored(world: World) -> None:
    rollout, attempt = await claim(world)
    rollout_id = rollout.rollout_id
    result = await world.store.ingest_spans(
        [
            batch(rollout_id, attempt.attempt_id, "a"),
            batch("ro-nope", "at-nope", "x", "y"),
            batch(rollout_id, "at-nope", "z"),
            batch(rollout_id, attempt.attempt_id, "b"),
        ]
    )
    assert counts(result) == (2, 0, 3)
    seen = [(r.message_index, r.reason, r.span_count) for r in result.rejections]
    assert seen == [
        (1, "ERROR_REASON_ROLLOUT_NOT_FOUND", 2),
        (2, "ERROR_REASON_ATTEMPT_NOT_FOUND", 1),
    ]
    assert await names(world, rollout_id) == ["a", "b"]
    assert (await world.store.get_statistics()).span_count == 2


async def test_first_ten_rejections_are_told_and_all_counted(world: World) -> None:
    result = await world.store.ingest_spans([batch("ro-nope", "at-x", "a") for _ in range(12)])
    assert counts(result) == (0, 0, 12)
    assert [rejection.message_index for rejection in result.rejections] == list(range(10))


async def test_stream_carries_batches_of_many_attempts(world: World) -> None:
    claims = [await claim(world) for _ in range(3)]

    async def batches() -> AsyncIterator[SpanBatch]:
        for n in range(4):
            for rollout, attempt in claims:
                yield batch(rollout.rollout_id, attempt.attempt_id, f"s{n}")

    assert counts(await world.store.ingest_spans(batches())) == (12, 0, 0)
    for rollout, _ in claims:
        assert await names(world, rollout.rollout_id) == ["s0", "s1", "s2", "s3"]


async def test_empty_stream_is_no_error(world: World) -> None:
    result = await world.store.ingest_spans([])
    assert result == (0, 0, 0, [], [], 0)


async def test_stream_sent_again_is_all_duplicates(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = [batch(rollout.rollout_id, attempt.attempt_id, f"s{n}", "t") for n in range(3)]
    await world.store.ingest_spans(sent)
    assert counts(await world.store.ingest_spans(sent)) == (0, 6, 0)
    assert (await world.store.get_attempt(rollout.rollout_id)).span_count == 6


async def test_running_attempt_is_not_told_to_stop(world: World) -> None:
    rollout, attempt = await claim(world)
    result = await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "a"))
    assert result.stops == []


async def test_superseded_attempt_is_told_to_stop_and_its_spans_stored(world: World) -> None:
    rollout, attempt = await claim(world)
    second = await world.store.start_attempt(rollout.rollout_id)
    result = await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "late"))
    assert counts(result) == (1, 0, 0)
    assert result.stops == [Stop(rollout.rollout_id, attempt.attempt_id, "superseded")]
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "preparing"
    assert stored.latest_attempt_id == second.attempt.attempt_id
    assert stored.latest_attempt.status == "preparing"
    old = await world.store.get_attempt(rollout.rollout_id, attempt.attempt_id)
    assert (old.status, old.span_count) == ("running", 1)
    assert await names(world, rollout.rollout_id) == ["late"]


async def test_cancelled_rollout_stops_its_attempt_once_a_stream(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.cancel_rollouts([rollout.rollout_id])
    sent = [batch(rollout.rollout_id, attempt.attempt_id, "late") for _ in range(2)]
    result = await world.store.ingest_spans(sent)
    assert counts(result) == (2, 0, 0)
    assert result.stops == [Stop(rollout.rollout_id, attempt.attempt_id, "rollout_cancelled")]
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert stored.status == "cancelled"
    assert stored.end_time is not None


async def test_late_span_of_a_finished_attempt_is_stored_and_changes_nothing(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    before = await world.store.get_rollout(rollout.rollout_id)
    await world.advance(1)
    result = await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "late"))
    assert [stop.reason for stop in result.stops] == ["rollout_finished"]
    after = await world.store.get_rollout(rollout.rollout_id)
    assert (after.status, after.latest_attempt.status) == ("succeeded", "succeeded")
    assert after.end_time == before.end_time
    assert after.completion_number == before.completion_number
    assert after.latest_attempt.span_count == 1
    assert await names(world, rollout.rollout_id) == ["late"]


async def test_late_span_of_a_failed_attempt_leaves_the_retry_in_the_queue(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="failed")
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "late"))
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
    (again,) = await world.store.dequeue_rollouts(1)
    assert again.rollout_id == rollout.rollout_id
    assert again.attempt.message.sequence_number == 2


async def test_span_revives_an_unresponsive_attempt(world: World) -> None:
    from lightningstore.client import RolloutConfig

    config = RolloutConfig(unresponsive_timeout=5, max_attempts=2, retry_condition=["unresponsive"])
    rollout, attempt = await claim(world, config=config)
    await world.advance(6)
    assert (await world.store.get_rollout(rollout.rollout_id)).status == "requeuing"
    result = await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "back"))
    assert result.stops == []
    stored = await world.store.get_rollout(rollout.rollout_id)
    assert (stored.status, stored.latest_attempt.status) == ("running", "running")
    assert stored.latest_attempt.end_time is None
    assert (await world.store.get_statistics()).queue_depth == 0
    assert await world.store.dequeue_rollouts(1) == []


async def test_answered_spans_survive_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    await world.store.add_spans(sent)
    before = await query(world, rollout.rollout_id)
    await world.restart()
    assert await query(world, rollout.rollout_id) == before
    await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, "c"))
    numbers = [span.sequence_id for span in await query(world, rollout.rollout_id)]
    assert numbers == [1, 2, 3]
    assert (await world.store.get_attempt(rollout.rollout_id)).span_count == 3


async def test_request_id_repeats_the_first_counts(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    first = await world.store.add_spans(sent, request_id="r1")
    if world.durable:
        await world.restart()
    assert await world.store.add_spans(sent, request_id="r1") == first
    assert counts(await world.store.add_spans(sent, request_id="r2")) == (0, 1, 0)
    other = batch(rollout.rollout_id, attempt.attempt_id, "b")
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", "r1"):
        await world.store.add_spans(other, request_id="r1")


async def test_what_was_sent_and_got_is_not_the_stores_own(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a")
    await world.store.add_spans(sent)
    sent.spans[0].name = "changed"
    (got,) = await query(world, rollout.rollout_id)
    got.otlp.name = "changed too"
    assert await names(world, rollout.rollout_id) == ["a"]
