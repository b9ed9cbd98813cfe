"""QuerySpans: order, filters, windows."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from lightningstore.client import FailedPreconditionError, InvalidArgumentError, NotFoundError
from lightningstore.client._async import streams
from lightningstore.client._calls.streams import QueryState
from lightningstore.v1.span_pb2 import QuerySpansRequest, SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, names, query, refused

pytestmark = pytest.mark.asyncio


async def test_rollout_without_spans_answers_nothing(world: World) -> None:
    (rollout_id,) = await enqueue(world, 1)
    assert await names(world, rollout_id) == []


async def test_overlapping_batches_are_merged_by_sequence_id(world: World) -> None:
    rollout, attempt = await claim(world)
    ids = (rollout.rollout_id, attempt.attempt_id)
    await world.store.add_spans(batch(*ids, "1", "4", "7", numbers=(1, 4, 7)))
    await world.store.add_spans(batch(*ids, "9", "2", numbers=(9, 2)))
    await world.store.add_spans(batch(*ids, "3", "20", numbers=(3, 20)))
    await world.store.add_spans(batch(*ids, "21", "22"))
    await world.store.add_spans(batch(*ids, "5", numbers=(5,)))
    assert await names(world, ids[0]) == ["1", "2", "3", "4", "5", "7", "9", "20", "21", "22"]
    assert await names(world, ids[0], offset=3, limit=4) == ["4", "5", "7", "9"]


async def test_equal_sequence_ids_go_by_start_time(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "late", "early", numbers=(1, 1))
    sent.spans[0].start_time_unix_nano, sent.spans[1].start_time_unix_nano = 9, 3
    await world.store.add_spans(sent)
    assert await names(world, rollout.rollout_id) == ["early", "late"]


async def test_attempts_are_picked_or_merged(world: World) -> None:
    rollout, first = await claim(world)
    await world.store.add_spans(batch(rollout.rollout_id, "latest", "a1", "a2"))
    await world.store.start_attempt(rollout.rollout_id)
    await world.store.add_spans(batch(rollout.rollout_id, "latest", "b1"))
    assert await names(world, rollout.rollout_id, first.attempt_id) == ["a1", "a2"]
    assert await names(world, rollout.rollout_id, "latest") == ["b1"]
    assert sorted(await names(world, rollout.rollout_id)) == ["a1", "a2", "b1"]
    numbers = [s.sequence_id for s in await query(world, rollout.rollout_id)]
    assert numbers == [1, 1, 2]


async def test_filters_are_exact_or_substring_and_joined(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "alpha", "alphabet", "beta")
    root, child = sent.spans[0], sent.spans[1]
    child.parent_span_id = root.span_id
    await world.store.add_spans(sent)
    ask = rollout.rollout_id
    assert await names(world, ask, name="alpha") == ["alpha"]
    assert await names(world, ask, name_contains="alpha") == ["alpha", "alphabet"]
    assert await names(world, ask, trace_id=root.trace_id.hex()) == ["alpha"]
    assert await names(world, ask, span_id_contains=child.span_id.hex()[3:]) == ["alphabet"]
    assert await names(world, ask, parent_span_id=root.span_id.hex()) == ["alphabet"]
    assert await names(world, ask, parent_span_id="") == ["alpha", "beta"]
    both = {"name_contains": "bet", "parent_span_id": ""}
    assert await names(world, ask, **both) == ["beta"]
    assert await names(world, ask, **both, filter_logic="or") == ["alpha", "alphabet", "beta"]
    assert await names(world, ask, name="gamma", span_id="00", filter_logic="or") == []
    assert await names(world, ask, name_contains="a", offset=1, limit=1) == ["alphabet"]


@pytest.mark.parametrize(
    "field",
    ["sequence_id", "start_time", "end_time", "name", "trace_id", "span_id", "parent_span_id"],
)
async def test_every_order_works_both_ways(world: World, field: str) -> None:
    rollout, attempt = await claim(world)
    for _ in range(3):
        sent = batch(rollout.rollout_id, attempt.attempt_id, *(os.urandom(2).hex() for _ in "abcd"))
        for i, span in enumerate(sent.spans):
            span.start_time_unix_nano, span.end_time_unix_nano = (i * 7) % 4, (i * 5) % 3
            span.parent_span_id = os.urandom(8)
        await world.store.add_spans(sent)
    ascending = await query(world, rollout.rollout_id, order_by=field)
    descending = await query(world, rollout.rollout_id, order_by=f"{field} desc")
    assert [s.span_id for s in descending] == [s.span_id for s in ascending][::-1]
    attribute = f"{field}_unix_nano" if field.endswith("_time") else field
    if field == "sequence_id":
        values = [s.sequence_id for s in ascending]
    else:
        values = [getattr(s.otlp, attribute) for s in ascending]
    assert values == sorted(values)
    assert len(values) == 12


async def test_limit_and_offset_window_any_batching(world: World) -> None:
    rollout, attempt = await claim(world)
    for start in range(0, 12, 4):
        words = [str(n) for n in range(start, start + 4)]
        await world.store.add_spans(batch(rollout.rollout_id, attempt.attempt_id, *words))
    everything = [str(n) for n in range(12)]
    for offset in range(14):
        for limit in (0, 1, 3, 4, 5, 20, -1):
            end = None if limit == -1 else offset + limit
            got = await names(world, rollout.rollout_id, offset=offset, limit=limit)
            assert got == everything[offset:end]


async def test_many_spans_come_in_several_messages_and_in_order(world: World) -> None:
    rollout, attempt = await claim(world)
    batches = []
    for start in range(0, 3000, 100):
        one = batch(
            rollout.rollout_id, attempt.attempt_id, *(str(n) for n in range(start, start + 100))
        )
        for span in one.spans:
            span.attributes.add(key="pad").value.string_value = "x" * 1000
        batches.append(one)
    await world.store.ingest_spans(batches)
    assert await names(world, rollout.rollout_id) == [str(n) for n in range(3000)]


@pytest.mark.parametrize(
    "options", [{"limit": -2}, {"offset": -1}, {"order_by": "colour"}], ids=lambda o: next(iter(o))
)
async def test_bad_query_is_refused(world: World, options: dict) -> None:
    rollout, _ = await claim(world)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", next(iter(options))):
        await query(world, rollout.rollout_id, **options)


async def test_unknown_rollout_or_attempt_is_not_found(world: World) -> None:
    rollout, _ = await claim(world)
    async with refused(world, NotFoundError, "ROLLOUT_NOT_FOUND"):
        await query(world, "ro-none")
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND"):
        await query(world, rollout.rollout_id, "at-none")


@pytest.mark.parametrize("way", ["memory-inprocess", "memory-grpc"])
async def test_oldest_finished_rollouts_lose_their_spans_first(way: str, tmp_path) -> None:
    world = World(way, tmp_path, eviction_threshold=100_000, safe_threshold=60_000)
    await world.start()
    rollouts = []
    for i in range(5):
        await world.advance(1)
        rollout, attempt = await claim(world)
        rollouts.append(rollout.rollout_id)
        sent = batch(rollout.rollout_id, attempt.attempt_id, "s")
        sent.spans[0].attributes.add(key="k").value.string_value = "x" * 19_000
        await world.store.add_spans(sent)
        if i in (1, 2, 3):
            await world.store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
    extra = batch(rollouts[0], "latest", "t")
    extra.spans[0].attributes.add(key="k").value.string_value = "x" * 19_000
    await world.store.add_spans(extra)
    for rollout_id in rollouts[1:4]:
        with pytest.raises(FailedPreconditionError) as caught:
            await query(world, rollout_id)
        assert caught.value.reason == "ERROR_REASON_SPANS_EVICTED"
    assert await names(world, rollouts[0]) == ["s", "t"]
    assert await names(world, rollouts[4]) == ["s"]
    statistics = await world.store.get_statistics()
    assert statistics.message.evicted_span_count == 3
    assert statistics.span_count == 3
    assert statistics.message.span_bytes <= 60_000
    assert (await world.store.get_attempt(rollouts[1])).span_count == 1
    await world.stop()


T1, T2 = "0a" * 16, "ab" * 16


def span(name: str, span_id: str, trace_id: str, start: int, end: int, parent: str = "") -> Span:
    return Span(
        name=name,
        span_id=bytes.fromhex(span_id * 8),
        trace_id=bytes.fromhex(trace_id),
        parent_span_id=bytes.fromhex(parent * 8),
        start_time_unix_nano=start,
        end_time_unix_nano=end,
    )


SPANS = [
    span("root", "01", T1, 100, 900),
    span("openai.chat", "02", T1, 400, 500, "01"),
    span("tool", "03", T2, 200, 800),
    span("openai.chat", "c4", T2, 300, 350, "03"),
]


async def four(world: World) -> str:
    """Store SPANS with the numbers 1 to 4, in two batches."""
    rollout, attempt = await claim(world)
    for part in (SPANS[:2], SPANS[2:]):
        await world.store.add_spans(
            SpanBatch(rollout_id=rollout.rollout_id, attempt_id=attempt.attempt_id, spans=part)
        )
    return rollout.rollout_id


async def numbers(world: World, rollout_id: str, **options: Any) -> list[int]:
    return [s.sequence_id for s in await query(world, rollout_id, **options)]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"name": "openai"}, []),
        ({"name": ""}, []),
        ({"name_contains": "OO"}, []),
        ({"name_contains": ""}, [1, 2, 3, 4]),
        ({"name_contains": "%"}, []),
        ({"name_contains": "openai_chat"}, []),
        ({"trace_id": T1}, [1, 2]),
        ({"trace_id": T1[:-1]}, []),
        ({"trace_id_contains": "ba"}, [3, 4]),
        ({"span_id": "03" * 8}, [3]),
        ({"span_id_contains": "c4c4"}, [4]),
        ({"span_id_contains": "C4C4"}, []),
        ({"parent_span_id": "01" * 8}, [2]),
        ({"parent_span_id": ""}, [1, 3]),
        ({"parent_span_id_contains": "030"}, [4]),
        ({"name": "openai.chat", "trace_id": T2}, [4]),
        ({"name": "root", "trace_id": T2}, []),
        ({"name": "root", "trace_id": T2, "filter_logic": "or"}, [1, 3, 4]),
        ({"name": "root", "span_id_contains": "c4", "filter_logic": "or"}, [1, 4]),
        ({"filter_logic": "or"}, [1, 2, 3, 4]),
        ({"name": "nope", "filter_logic": "or"}, []),
        ({"name": "openai.chat", "offset": 1, "limit": 1}, [4]),
        ({"order_by": "sequence_id asc"}, [1, 2, 3, 4]),
        ({"order_by": "sequence_id desc"}, [4, 3, 2, 1]),
        ({"order_by": "start_time"}, [1, 3, 4, 2]),
        ({"order_by": "end_time desc"}, [1, 3, 2, 4]),
        ({"order_by": "start_time desc", "trace_id": T2, "limit": 1}, [4]),
    ],
    ids=str,
)
async def test_filters_and_orders_choose_spans(
    world: World, filters: dict[str, Any], expected: list[int]
) -> None:
    assert await numbers(world, await four(world), **filters) == expected


@pytest.mark.parametrize("order_by", ["", "sequence_id desc", "start_time"])
async def test_limit_and_offset_cut_the_ordered_spans(world: World, order_by: str) -> None:
    rollout_id = await four(world)
    everything = await numbers(world, rollout_id, order_by=order_by)
    for limit in (None, -1, 0, 1, 2, 4, 9):
        for offset in (0, 1, 3, 4, 9):
            end = None if limit in (None, -1) else offset + limit
            got = await numbers(world, rollout_id, order_by=order_by, limit=limit, offset=offset)
            assert got == everything[offset:end], (limit, offset)


async def test_or_joins_the_filters_and_never_the_attempt(world: World) -> None:
    rollout, _ = await claim(world)
    rollout_id = rollout.rollout_id
    await world.store.add_spans(batch(rollout_id, "latest", "old"))
    await world.store.start_attempt(rollout_id)
    await world.store.add_spans(batch(rollout_id, "latest", "new"))
    other = await four(world)
    either = {"name": "old", "name_contains": None, "parent_span_id": "x", "filter_logic": "or"}
    assert await names(world, rollout_id, "latest", **either) == []
    assert await names(world, rollout_id, **either) == ["old"]
    assert await names(world, other, **either) == []


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("rollout_id", {"rollout_id": ""}),
        ("limit", {"limit": -2}),
        ("offset", {"offset": -1}),
        ("order_by", {"order_by": "nope"}),
        ("order_by", {"order_by": "name upwards"}),
        ("order_by", {"order_by": "name desc,"}),
        ("filter_logic", {"filter_logic": 99}),
        ("name", {"name": {}}),
        ("trace_id", {"trace_id": {}}),
    ],
    ids=str,
)
async def test_bad_fields_are_named(world: World, field: str, change: dict[str, Any]) -> None:
    request = QuerySpansRequest(**{"rollout_id": await four(world), **change})
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", field):
        spans = streams.query(world.store._transport, QueryState(request), 10)
        _ = [span async for span in spans]


async def test_latest_of_a_rollout_without_attempts_is_not_found(world: World) -> None:
    (waiting,) = await enqueue(world, 1)
    async with refused(world, NotFoundError, "ATTEMPT_NOT_FOUND", waiting):
        await query(world, waiting, "latest")


async def test_answers_of_six_megabytes_come_in_chunks(world: World) -> None:
    rollout, attempt = await claim(world)
    ids = rollout.rollout_id, attempt.attempt_id
    text = KeyValue(key="t", value=AnyValue(string_value="x" * 10_000))
    for n in range(6):
        sent = batch(*ids, *(f"{n}-{i}" for i in range(100)))
        for one in sent.spans:
            one.attributes.append(text)
        await world.store.add_spans(sent)
    expected = [f"{n}-{i}" for n in range(6) for i in range(100)]
    assert await names(world, ids[0]) == expected
    assert await names(world, ids[0], order_by="sequence_id desc") == expected[::-1]
    assert await names(world, ids[0], limit=150, offset=120) == expected[120:270]
    request = QuerySpansRequest(rollout_id=ids[0])
    answers = world.store._transport.server_stream("QuerySpans", request, None)
    sizes = [answer.ByteSize() async for answer in answers]
    assert len(sizes) >= 3
    assert max(sizes) < 3 << 20


async def test_query_ends_while_others_write(world: World) -> None:
    rollout, attempt = await claim(world)
    ids = rollout.rollout_id, attempt.attempt_id
    await world.store.ingest_spans([batch(*ids, *"ab") for _ in range(50)])
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await world.store.add_spans(batch(*ids, "later"))
            await asyncio.sleep(0)

    writer = asyncio.create_task(write())
    try:
        for order_by in ("", "name"):
            got = await names(world, ids[0], order_by=order_by)
            assert got.count("a") == got.count("b") == 50
    finally:
        stop.set()
        await writer


async def test_query_given_up_half_way_harms_nobody(world: World) -> None:
    rollout_id = await four(world)
    found = world.store.query_spans(rollout_id)
    assert (await found.__anext__()).sequence_id == 1
    await found.aclose()
    assert await numbers(world, rollout_id) == [1, 2, 3, 4]
