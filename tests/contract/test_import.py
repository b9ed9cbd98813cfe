"""ImportRollouts: what is kept, what is new, what is known, and what is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.client import (
    AlreadyExistsError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from lightningstore.v1 import attempt_pb2, rollout_pb2
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.span_pb2 import SpanBatch

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, names, query, refused, snapshot

pytestmark = pytest.mark.asyncio

START = 1_600_000_000
MIB = 1 << 20


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=START + seconds, nanos=123_456_789)


def message(
    rollout_id: str = "ro-old", *batches: SpanBatch, attempts: int = 2
) -> ImportRolloutsRequest:
    """Return a failed-then-succeeded rollout, with the given batches."""
    request = ImportRolloutsRequest(batches=batches)
    request.rollout.MergeFrom(
        rollout_pb2.Rollout(
            rollout_id=rollout_id,
            input_json=b'{"b": 1, "a": 1e2}',
            mode=rollout_pb2.ROLLOUT_MODE_VAL,
            priority=-3,
            group_id="g",
            resources_id="rs-elsewhere",
            status=rollout_pb2.ROLLOUT_STATUS_SUCCEEDED,
            config=rollout_pb2.RolloutConfig(max_attempts=2),
            metadata_json=b'{"k": 9007199254740993}',
            start_time=at(0),
            end_time=at(9),
            attempt_count=attempts,
            latest_attempt_id=f"at-{attempts}" if attempts else "",
        )
    )
    for number in range(1, attempts + 1):
        failed = number < attempts
        request.attempts.add(
            rollout_id=rollout_id,
            attempt_id=f"at-{number}",
            sequence_number=number,
            status=attempt_pb2.ATTEMPT_STATUS_FAILED
            if failed
            else attempt_pb2.ATTEMPT_STATUS_SUCCEEDED,
            worker_id="w-elsewhere",
            resources_id="rs-elsewhere",
            resources_version=4,
            start_time=at(number),
            end_time=at(number + 1),
            last_heartbeat_time=at(number),
            metadata_json=b'{"n": 1}',
        )
    if attempts > 1:
        request.attempts[0].failure.type = "OOM"
    return request


def changed(change: Callable[[Any], None], *batches: SpanBatch) -> ImportRolloutsRequest:
    request = message("ro-old", *batches)
    change(request)
    return request


async def test_rollout_keeps_all_but_its_completion_number(world: World) -> None:
    sent = message("ro-old", batch("ro-old", "at-1", "a", "b"), batch("ro-old", "at-2", "c"))
    sent.rollout.completion_number = 77
    sent.rollout.latest_attempt.attempt_id = "at-nonsense"
    assert tuple(await world.store.import_rollouts([sent])) == (1, 0, 3, 0, 0)
    stored = (await world.store.get_rollout("ro-old")).message
    attempts = [a.message for a in await world.store.list_attempts("ro-old")]
    assert stored.latest_attempt == attempts[1]
    assert stored.completion_number == 1
    assert [a.span_count for a in attempts] == [2, 1]
    for record in attempts:
        record.ClearField("span_count")
    assert attempts == list(sent.attempts)
    for record in (stored, sent.rollout):
        record.ClearField("completion_number")
        record.ClearField("latest_attempt")
    assert stored == sent.rollout
    assert await names(world, "ro-old", "at-1") == ["a", "b"]
    assert await names(world, "ro-old", "at-2") == ["c"]


async def test_queue_and_labels_are_kept_and_found(world: World) -> None:
    sent = message("ro-old")
    sent.rollout.queue = "gpu"
    sent.rollout.labels.update({"run": "7"})
    await world.store.import_rollouts([sent])
    assert (await world.store.import_rollouts([sent])).known_count == 1
    (found,) = await world.store.list_rollouts(queues=["gpu"], labels={"run": "7"})
    assert (found.queue, found.labels) == ("gpu", {"run": "7"})
    sent.rollout.labels["run"] = "8"
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "ro-old"):
        await world.store.import_rollouts([sent])


async def test_spans_keep_their_sequence_ids_and_all_their_bytes(world: World) -> None:
    sent = batch("ro-old", "at-1", "x", "y", "z", numbers=(900, 7, 8))
    sent.resource.attributes.add(key="service.name").value.string_value = "s"
    sent.scope.name, sent.schema_url, sent.resource_schema_url = "lib", "http://s", "http://r"
    await world.store.import_rollouts([message("ro-old", sent)])
    found = await query(world, "ro-old")
    assert [(s.name, s.sequence_id) for s in found] == [("y", 7), ("z", 8), ("x", 900)]
    assert found[2].otlp == sent.spans[0]
    assert (found[2].resource, found[2].scope) == (sent.resource, sent.scope)
    (first,) = await world.store.allocate_sequence_ids([("ro-old", "at-1", 1)])
    assert first.first_sequence_id == 901


async def test_a_span_with_a_reward_and_many_attributes_is_stored(world: World) -> None:
    sent = batch("ro-old", "at-2", "x")
    for number in range(50_001):
        sent.spans[0].attributes.add(key=f"k{number % 10}").value.string_value = "v" * 20
    sent.spans[0].attributes.add(key="agentlightning.reward").value.double_value = 0.5
    reply = await world.store.import_rollouts([message("ro-old", sent)])
    assert (reply.imported_count, reply.accepted_span_count) == (1, 1)
    assert (await world.store.get_rollout("ro-old")).reward == 0.5


async def test_completion_numbers_follow_the_order_of_the_stream(world: World) -> None:
    rollout, attempt = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, status="succeeded")
    await world.store.import_rollouts([message(f"ro-{n}") for n in (3, 1, 2)])
    listed = await world.store.list_rollouts(order_by="completion_number")
    assert [(r.rollout_id, r.completion_number) for r in listed] == [
        (rollout.rollout_id, 1),
        ("ro-3", 2),
        ("ro-1", 3),
        ("ro-2", 4),
    ]


async def test_watchers_and_waiters_are_told(world: World) -> None:
    async with world.store.watch_rollouts() as stream:
        await stream.registered()
        await world.store.import_rollouts([message("ro-1"), message("ro-2")])
        assert [(await anext(stream)).rollout_id for _ in range(2)] == ["ro-1", "ro-2"]
    waited = await world.store.wait_for_rollouts(group_ids=["g"]).results()
    assert {r.rollout_id for r in waited} == {"ro-1", "ro-2"}


async def test_counts_rise_and_no_worker_comes_of_it(world: World) -> None:
    await world.store.import_rollouts([message("ro-old", batch("ro-old", "at-1", "a", "b"))])
    statistics = (await world.store.get_statistics()).message
    assert [(c.status, c.count) for c in statistics.rollouts if c.count] == [(4, 1)]
    assert sorted((c.status, c.count) for c in statistics.attempts if c.count) == [(3, 1), (4, 1)]
    assert (statistics.span_count, statistics.queue_depth) == (2, 0)
    assert not await world.store.list_workers()
    assert not await world.store.dequeue_rollouts(1)


async def test_repeat_is_known_and_changes_nothing(world: World) -> None:
    sent = [
        message("ro-1", batch("ro-1", "at-1", "a"), batch("ro-1", "at-2", "b")),
        message("ro-2", attempts=0),
    ]
    sent[1].rollout.config.max_attempts = 0  # stands for 1
    await world.store.import_rollouts(sent)
    before = await snapshot(world)
    assert tuple(await world.store.import_rollouts(sent)) == (0, 2, 0, 2, 0)
    assert await snapshot(world) == before


async def test_messages_of_one_rollout_bring_its_spans_bit_by_bit(world: World) -> None:
    parts = [batch("ro-1", "at-1", f"s{n}", numbers=(n,)) for n in range(1, 5)]
    sent = [message("ro-1", part) for part in parts]
    assert tuple(await world.store.import_rollouts([*sent[:2], message("ro-2")])) == (2, 0, 2, 0, 0)
    assert tuple(await world.store.import_rollouts(sent)) == (0, 1, 2, 2, 0)
    assert await names(world, "ro-1") == ["s1", "s2", "s3", "s4"]
    assert (await world.store.get_attempt("ro-1", "at-1")).span_count == 4


async def test_known_after_a_restart_and_after_late_signs_of_life(world: World) -> None:
    sent = message("ro-1", batch("ro-1", "at-2", "a"))
    await world.store.import_rollouts([sent])
    await world.store.add_spans(batch("ro-1", "at-2", "late"))
    if world.durable:
        await world.restart()
    assert tuple(await world.store.import_rollouts([sent])) == (0, 1, 0, 1, 0)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m.rollout, "input_json", b'{"b":1,"a":1e2}'),
        lambda m: setattr(m.rollout, "priority", 1),
        lambda m: setattr(m.rollout, "metadata_json", b"{}"),
        lambda m: setattr(m.rollout, "status", rollout_pb2.ROLLOUT_STATUS_FAILED),
        lambda m: m.rollout.end_time.CopyFrom(at(10)),
        lambda m: setattr(m.attempts[0], "worker_id", "other"),
        lambda m: setattr(m.attempts[0].failure, "type", "other"),
        lambda m: setattr(m.attempts[0], "metadata_json", b""),
    ],
)
async def test_other_content_under_a_taken_id_is_refused(world: World, change: Any) -> None:
    await world.store.import_rollouts([message()])
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "ro-old"):
        await world.store.import_rollouts([changed(change, batch("ro-old", "at-1", "a"))])


async def test_one_attempt_more_is_other_content(world: World) -> None:
    await world.store.import_rollouts([message(attempts=1)])
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS"):
        await world.store.import_rollouts([message(attempts=2)])


async def test_rollout_that_lives_here_is_other_content(world: World) -> None:
    await world.store.enqueue_rollout({"task": 1}, rollout_id="ro-old")
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS", "ro-old"):
        await world.store.import_rollouts([message()])


INVALID: list[tuple[str, Any]] = [
    ("rollout.rollout_id", lambda m: m.rollout.ClearField("rollout_id")),
    ("rollout.rollout_id", lambda m: setattr(m.rollout, "rollout_id", "latest")),
    ("rollout.rollout_id", lambda m: setattr(m.rollout, "rollout_id", "r" * 257)),
    ("rollout.input_json", lambda m: m.rollout.ClearField("input_json")),
    ("rollout.input_json", lambda m: setattr(m.rollout, "input_json", b"{")),
    ("rollout.metadata_json", lambda m: setattr(m.rollout, "metadata_json", b"[]")),
    ("rollout.mode", lambda m: setattr(m.rollout, "mode", 9)),
    ("rollout.group_id", lambda m: setattr(m.rollout, "group_id", "g" * 257)),
    ("rollout.rollout_id", lambda m: setattr(m.rollout, "rollout_id", "r\0")),
    ("rollout.queue", lambda m: setattr(m.rollout, "queue", "Q")),
    ("rollout.labels", lambda m: m.rollout.labels.update({"a b": "1"})),
    ("rollout.group_id", lambda m: setattr(m.rollout, "group_id", "g\0")),
    ("rollout.resources_id", lambda m: setattr(m.rollout, "resources_id", "r\0")),
    ("attempts[1].worker_id", lambda m: setattr(m.attempts[1], "worker_id", "w\0")),
    ("attempts[1].resources_id", lambda m: setattr(m.attempts[1], "resources_id", "r\0")),
    ("rollout.resources_id", lambda m: setattr(m.rollout, "resources_id", "r" * 257)),
    ("rollout.status", lambda m: m.rollout.ClearField("status")),
    ("rollout.status", lambda m: setattr(m.rollout, "status", rollout_pb2.ROLLOUT_STATUS_RUNNING)),
    ("rollout.config.max_attempts", lambda m: setattr(m.rollout.config, "max_attempts", -1)),
    ("rollout.start_time", lambda m: m.rollout.ClearField("start_time")),
    ("rollout.end_time", lambda m: m.rollout.ClearField("end_time")),
    ("rollout.end_time", lambda m: setattr(m.rollout.end_time, "nanos", -1)),
    ("rollout.end_time", lambda m: setattr(m.rollout.end_time, "seconds", 9_300_000_000)),
    ("rollout.start_time", lambda m: setattr(m.rollout.start_time, "seconds", -1)),
    ("rollout.attempt_count", lambda m: setattr(m.rollout, "attempt_count", 3)),
    ("rollout.latest_attempt_id", lambda m: setattr(m.rollout, "latest_attempt_id", "at-1")),
    ("attempts[1].rollout_id", lambda m: setattr(m.attempts[1], "rollout_id", "ro-other")),
    ("attempts[0].attempt_id", lambda m: setattr(m.attempts[0], "attempt_id", "")),
    ("attempts[1].attempt_id", lambda m: setattr(m.attempts[0], "attempt_id", "at-2")),
    ("attempts[1].sequence_number", lambda m: setattr(m.attempts[1], "sequence_number", 3)),
    ("attempts[1].status", lambda m: m.attempts[1].ClearField("status")),
    ("attempts[1].failure", lambda m: setattr(m.attempts[1].failure, "type", "x")),
    ("attempts[1].worker_id", lambda m: setattr(m.attempts[1], "worker_id", "latest")),
    ("attempts[1].resources_id", lambda m: setattr(m.attempts[1], "resources_id", "r" * 257)),
    ("attempts[1].resources_version", lambda m: setattr(m.attempts[1], "resources_version", -1)),
    ("attempts[1].metadata_json", lambda m: setattr(m.attempts[1], "metadata_json", b"1")),
    ("attempts[1].start_time", lambda m: m.attempts[1].ClearField("start_time")),
    ("attempts[1].end_time", lambda m: m.attempts[1].ClearField("end_time")),
    ("attempts[1].end_time", lambda m: setattr(m.attempts[1], "status", 2)),
    (
        "attempts[1].last_heartbeat_time",
        lambda m: setattr(m.attempts[1].last_heartbeat_time, "nanos", 10**9),
    ),
    ("batches[1].rollout_id", lambda m: setattr(m.batches[1], "rollout_id", "ro-other")),
    ("batches[1].attempt_id", lambda m: setattr(m.batches[1], "attempt_id", "latest")),
    ("batches[1].attempt_id", lambda m: setattr(m.batches[1], "attempt_id", "at-3")),
    ("batches[1].sequence_ids", lambda m: m.batches[1].sequence_ids.append(1)),
    ("batches[1].spans[1].span_id", lambda m: setattr(m.batches[1].spans[1], "span_id", b"1")),
]


@pytest.mark.parametrize(("field", "change"), INVALID)
async def test_bad_field_is_named_and_nothing_of_its_message_stored(
    world: World, field: str, change: Any
) -> None:
    await world.store.import_rollouts([message("ro-before")])
    bad = changed(change, batch("ro-old", "at-1", "a"), batch("ro-old", "at-2", "b", "c"))
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", f"messages[1].{field}"):
        await world.store.import_rollouts([message("ro-before"), bad])


async def test_what_came_before_the_bad_message_is_stored(world: World) -> None:
    bad = changed(lambda m: m.rollout.ClearField("status"))
    with pytest.raises(InvalidArgumentError):
        await world.store.import_rollouts([message("ro-1"), bad, message("ro-2")])
    assert [r.rollout_id for r in await world.store.list_rollouts()] == ["ro-1"]


async def test_empty_stream_is_an_import_of_nothing(world: World) -> None:
    assert tuple(await world.store.import_rollouts([])) == (0, 0, 0, 0, 0)


async def test_limits_hold_here_too(world: World) -> None:
    large = message()
    large.rollout.input_json = b'"' + b"x" * (16 * MIB) + b'"'
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "rollout.input_json"):
        await world.store.import_rollouts([large])
    spans = batch("ro-old", "at-1", "n" * (4 * MIB))
    async with refused(world, ResourceExhaustedError, "PAYLOAD_TOO_LARGE", "batches[0].spans[0]"):
        await world.store.import_rollouts([message("ro-old", spans)])


async def test_attempt_left_live_ends_in_its_time_and_stays_the_same_content(world: World) -> None:
    sent = message()
    sent.rollout.status = rollout_pb2.ROLLOUT_STATUS_CANCELLED
    sent.attempts[1].status = attempt_pb2.ATTEMPT_STATUS_RUNNING
    sent.attempts[1].ClearField("end_time")
    await world.store.import_rollouts([sent])
    assert (await world.store.get_attempt("ro-old")).status == "running"
    await world.advance(599)
    assert (await world.store.get_attempt("ro-old")).status == "running"
    await world.advance(2)
    assert (await world.store.get_attempt("ro-old")).status == "unresponsive"
    assert (await world.store.get_rollout("ro-old")).status == "cancelled"
    assert not await world.store.list_workers()
    assert tuple(await world.store.import_rollouts([sent])) == (0, 1, 0, 0, 0)


async def test_imported_rollout_can_be_claimed_again(world: World) -> None:
    await world.store.import_rollouts([message()])
    rollout = await world.store.start_attempt("ro-old", worker_id="w")
    assert (rollout.status, rollout.latest_attempt.message.sequence_number) == ("preparing", 3)
    assert rollout.latest_attempt.message.resources_version == 0


async def test_survives_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives in memory")
    await world.store.import_rollouts([message("ro-1", batch("ro-1", "at-2", "a", "b"))])
    before = await snapshot(world)
    await world.restart()
    assert (await snapshot(world))[1:] == before[1:]
    assert await names(world, "ro-1") == ["a", "b"]
    await world.store.import_rollouts([message("ro-2")])
    assert (await world.store.get_rollout("ro-2")).completion_number == 2


async def test_attempts_with_more_span_ids_than_are_cached_are_known_together(
    world: World,
) -> None:
    if not world.durable:
        pytest.skip("ids are loaded from a file only")
    sent = message("ro-1", batch("ro-1", "at-1", *"abc"), batch("ro-1", "at-2", *"def"))
    await world.store.import_rollouts([sent])
    await world.restart()
    assert world.service is not None
    world.service.engine.shared.caches.span_ids.limit = 4
    again = await asyncio.wait_for(world.store.import_rollouts([sent]), 10)
    assert tuple(again) == (0, 1, 0, 6, 0)


async def test_span_with_a_known_id_and_other_content_is_refused_and_counted(world: World) -> None:
    first = batch("ro-old", "at-1", "a", "b")
    await world.store.import_rollouts([message("ro-old", first)])
    if world.durable:
        await world.restart()
    second = batch("ro-old", "at-1", "other", "b", "new", "newer")
    for span, span_id in zip(second.spans[:2], [s.span_id for s in first.spans], strict=True):
        span.span_id = span_id
    second.spans[1].CopyFrom(first.spans[1])
    second.spans[3].span_id = second.spans[2].span_id
    result = await world.store.import_rollouts([message("ro-old", second)])
    assert (result.accepted_span_count, result.duplicate_span_count) == (1, 1)
    assert result.conflict_span_count == 2
    assert await names(world, "ro-old") == ["a", "b", "new"]
    assert (await world.store.get_attempt("ro-old", "at-1")).span_count == 3


async def test_spans_of_a_new_rollout_may_conflict_with_each_other(world: World) -> None:
    sent = batch("ro-new", "at-1", "a", "b", "c")
    sent.spans[1].CopyFrom(sent.spans[0])
    sent.spans[2].span_id = sent.spans[0].span_id
    result = await world.store.import_rollouts([message("ro-new", sent)])
    assert tuple(result) == (1, 0, 1, 1, 1)
    assert await names(world, "ro-new") == ["a"]


async def test_two_imports_of_the_same_at_once_store_it_once(world: World) -> None:
    sent = [message(f"ro-{n}", batch(f"ro-{n}", "at-1", "a", "b")) for n in range(20)]
    results = await asyncio.gather(*(world.store.import_rollouts(sent) for _ in range(2)))
    assert sum(r.imported_count for r in results) == sum(r.known_count for r in results) == 20
    assert sum(r.accepted_span_count for r in results) == 40
    assert len(await world.store.list_rollouts()) == 20


async def test_imported_rollout_is_listed_and_reported_with_the_number_of_its_spans(
    world: World,
) -> None:
    parts = [batch("ro-1", "at-2", f"s{n}", numbers=(n,)) for n in range(1, 5)]
    await world.store.import_rollouts([message("ro-1", *parts[:2])])
    await world.store.import_rollouts([message("ro-1", part) for part in parts])
    for restarted in (False, True):
        if restarted and world.durable:
            await world.restart()
        (listed,) = await world.store.list_rollouts()
        (waited,) = [r async for r in world.store.wait_for_rollouts(["ro-1"])]
        attempts = await world.store.list_attempts("ro-1")
        async with world.store.watch_rollouts(0) as stream:
            watched = await anext(stream)
        counts = [r.attempt.span_count for r in (listed, waited, watched)]
        assert counts + [attempt.span_count for attempt in attempts] == [4, 4, 4, 0, 4]
