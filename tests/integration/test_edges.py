"""Input at the edges: depth, sizes, numbers, filters, and texts that are code to somebody else."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from lightningstore.client import (
    LLM,
    Failure,
    InvalidArgumentError,
    LightningStoreError,
    PromptTemplate,
    ResourceExhaustedError,
)
from lightningstore.v1 import claim_pb2, rollout_pb2, span_pb2, worker_pb2
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, finish, names, query, snapshot
from tests.faults.wild import TEXTS

pytestmark = pytest.mark.asyncio

STORE = "/lightningstore.v1.LightningStoreService/"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
MIB = 1 << 20
SPAN_BYTES = 10_000
DEPTHS = [33, 100, 1_000, 100_000]
#: No single call of these may cost more CPU time, and so hold up the others for longer.
LONGEST_SECONDS = 2.0


def field(number: int, *parts: bytes) -> list[bytes]:
    """Return a field of bytes in pieces: in these depths copying each level would take too long."""
    size, head = sum(map(len, parts)), bytes([number << 3 | 2])
    while size > 127:
        head += bytes([size & 127 | 128])
        size >>= 7
    return [head + bytes([size]), *parts]


def deep_value(levels: int) -> bytes:
    """Return an attribute whose value is arrays in arrays: two messages a level."""
    size, heads = 0, []
    for level in range(2 * levels):
        number, head, left = (1, 5)[level % 2], b"", size
        head = bytes([number << 3 | 2])
        while left > 127:
            head += bytes([left & 127 | 128])
            left >>= 7
        head += bytes([left])
        heads.append(head)
        size += len(head)
    value = b"".join(reversed(heads))
    return b"".join(field(9, *field(1, b"deep"), *field(2, value)))


async def own_attempt(world: World) -> tuple[str, str]:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


@pytest.mark.parametrize("depth", DEPTHS)
async def test_nested_attributes_are_stored_or_refused_by_every_way_in(
    world: World, channel: grpc.aio.Channel, depth: int
) -> None:
    own = await own_attempt(world)
    good = batch(*own, "good")
    value = deep_value(depth // 2)
    spans = {}
    for way in ("add", "ingest", "export"):
        head = Span(trace_id=b"t" * 16, span_id=os.urandom(8), name=way).SerializeToString()
        spans[way] = head + value
    began = time.process_time()
    deep = SpanBatchBytes(own)
    try:
        await channel.unary_unary(STORE + "AddSpans")(deep.request(spans["add"]))
        added = True
    except grpc.aio.AioRpcError as error:
        assert error.code() == grpc.StatusCode.INVALID_ARGUMENT, error
        added = False
    streaming = channel.stream_unary(
        STORE + "IngestSpans", None, span_pb2.IngestSpansResponse.FromString
    )
    both = [
        deep.request(spans["ingest"]),
        span_pb2.IngestSpansRequest(batch=good).SerializeToString(),
    ]
    result = (await streaming(iter(both))).result
    call = channel.unary_unary(EXPORT, None, ExportTraceServiceResponse.FromString)
    metadata = (("agentlightning.rollout_id", own[0]), ("agentlightning.attempt_id", own[1]))
    scopes = b"".join(field(1, *field(2, *field(2, spans["export"]))))
    told = await call(scopes, metadata=metadata)
    assert time.process_time() - began < LONGEST_SECONDS
    refused = depth > 33
    assert (added, result.rejected_count, told.partial_success.rejected_spans) == (
        (False, 1, 1) if refused else (True, 0, 0)
    )
    assert sorted(await names(world, own[0])) == (
        ["good"] if refused else ["add", "export", "good", "ingest"]
    )


class SpanBatchBytes:
    """Builds requests around a serialised span that protobuf itself would not hold."""

    def __init__(self, own: tuple[str, str]) -> None:
        self.head = span_pb2.SpanBatch(rollout_id=own[0], attempt_id=own[1]).SerializeToString()

    def request(self, span: bytes) -> bytes:
        return b"".join(field(1, self.head, *field(2, span)))


@pytest.mark.parametrize("depth", DEPTHS)
async def test_nested_json_is_stored_as_it_is_or_refused(world: World, depth: int) -> None:
    text = b"[" * depth + b"]" * depth
    request = rollout_pb2.EnqueueRolloutsRequest(rollouts=[{"input_json": text}])
    try:
        (made,) = (await world.store.call("EnqueueRollouts", request)).rollouts
    except InvalidArgumentError as error:
        assert "input_json" in str(error)
        assert depth > 100
        assert (await world.store.get_statistics()).queue_depth == 0
    else:
        assert made.input_json == text


@pytest_asyncio.fixture(params=["memory-grpc", "sqlite-grpc"])
async def narrow(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A server with small limits."""
    world = World(request.param, tmp_path, max_message_bytes=MIB, max_span_bytes=SPAN_BYTES)
    await world.start()
    yield world
    await world.stop()


def pad(request: Any, span: Span, size: int) -> None:
    """Make the request exactly that long, in bytes, by the name of a span in it."""
    span.name = "x" * 1000  # from here on lengths take two bytes
    while missing := size - request.ByteSize():
        span.name = "x" * (len(span.name) + missing)


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_message_at_its_limit_is_taken_and_one_byte_more_refused(
    narrow: World, over: int
) -> None:
    own = await own_attempt(narrow)
    spans = [
        Span(trace_id=b"t" * 16, span_id=os.urandom(8), name="x" * 4000) for _ in range(MIB // 4042)
    ]
    request = span_pb2.AddSpansRequest(
        batch=span_pb2.SpanBatch(rollout_id=own[0], attempt_id=own[1], spans=spans)
    )
    pad(request, request.batch.spans[0], MIB + over)
    if over <= 0:
        await narrow.store.call("AddSpans", request)
        assert len(await names(narrow, own[0])) == len(request.batch.spans)
        return
    with pytest.raises(ResourceExhaustedError) as caught:
        await narrow.store.call("AddSpans", request)
    assert caught.value.reason == "ERROR_REASON_PAYLOAD_TOO_LARGE"
    assert str(MIB) in str(caught.value)
    assert await names(narrow, own[0]) == []


@pytest.mark.parametrize("over", [-1, 0, 1])
async def test_span_at_its_limit_is_taken_and_one_byte_more_refused(
    narrow: World, over: int
) -> None:
    own = await own_attempt(narrow)
    sent = batch(*own, "a")
    pad(sent.spans[0], sent.spans[0], SPAN_BYTES + over)
    if over <= 0:
        await narrow.store.add_spans(sent)
        assert (await query(narrow, own[0]))[0].name == sent.spans[0].name
    else:
        with pytest.raises(ResourceExhaustedError, match=str(SPAN_BYTES)):
            await narrow.store.add_spans(sent)


async def test_numbers_and_times_at_the_edges_come_back_as_they_went_in(world: World) -> None:
    own = await own_attempt(world)
    doubles = [0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1e308]
    integers = [0, -1, 2**63 - 1, -(2**63)]
    times = [0, 1, 2**63 - 1, 2**63, 2**64 - 1]
    sent = batch(*own, *map(str, times))
    for span, nanoseconds in zip(sent.spans, times, strict=True):
        span.start_time_unix_nano, span.end_time_unix_nano = nanoseconds, times[-1] - nanoseconds
        for value in doubles:
            span.attributes.add(key="d").value.double_value = value
        for value in integers:
            span.attributes.add(key="i").value.int_value = value
    await world.store.add_spans(sent)
    for order in ("", "start_time", "end_time desc"):
        found = [span.message for span in await query(world, own[0], order_by=order)]
        assert [span.SerializeToString() for span in found] == [
            span.SerializeToString() for span in sent.spans
        ]


BAD_DURATIONS = [
    Duration(seconds=-1),
    Duration(nanos=-1),
    Duration(seconds=2**63 - 1),
    Duration(seconds=-(2**63)),
    Duration(seconds=1, nanos=1_000_000_000),
    Duration(seconds=1, nanos=-1),
]


@pytest.mark.parametrize("bad", BAD_DURATIONS, ids=lambda d: f"{d.seconds}s{d.nanos}ns")
async def test_duration_that_is_none_is_named_and_changes_nothing(
    world: World, bad: Duration
) -> None:
    await enqueue(world, 1)
    before = await snapshot(world)
    config = rollout_pb2.RolloutConfig
    calls: dict[str, Any] = {
        "wait": ("DequeueRollouts", claim_pb2.DequeueRolloutsRequest(limit=0, wait=bad)),
    }
    for name in ("timeout", "unresponsive_timeout"):
        specs = [rollout_pb2.RolloutSpec(input_json=b"1", config=config(**{name: bad}))]
        calls[name] = ("EnqueueRollouts", rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
    for name, (method, request) in calls.items():
        with pytest.raises(InvalidArgumentError, match=name):
            await world.store.call(method, request)
    assert await snapshot(world) == before


async def test_logs_sent_to_the_trace_service_store_nothing(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await own_attempt(world)
    logs = ExportLogsServiceRequest()
    group = logs.resource_logs.add()
    for key, value in zip(("rollout_id", "attempt_id"), own, strict=True):
        group.resource.attributes.add(key=f"agentlightning.{key}").value.string_value = value
    record = group.scope_logs.add().log_records.add(
        time_unix_nano=1, severity_text="INFO", trace_id=b"t" * 16, span_id=b"s" * 8
    )
    record.body.string_value = "a log, and no span"
    data = logs.SerializeToString()
    call = channel.unary_unary(EXPORT, None, ExportTraceServiceResponse.FromString)
    assert (await call(data)).partial_success.rejected_spans == 1
    assert await names(world, own[0]) == []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(LOGS)(data)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_metadata_above_the_limit_is_refused_and_the_connection_goes_on(
    world: World, channel: grpc.aio.Channel
) -> None:
    call = channel.unary_unary(STORE + "GetServerInfo")
    assert await call(b"", metadata=(("x", "y" * 15_000),))
    for size in (17_000, 100_000):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=(("x", "y" * size),))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value
        assert await call(b"")


async def test_filters_of_ten_thousand_entries_are_answered_right_and_soon(world: World) -> None:
    rollouts = await enqueue(world, 300)
    many = [*rollouts, *(f"nobody-{n}" for n in range(10_000 - len(rollouts)))]
    groups = [f"g{n}" for n in range(10_000)]
    (grouped,) = await enqueue(world, 1, group_id="g9999")
    await world.store.heartbeat("w")

    async def found(**fields: Any) -> int:
        request = rollout_pb2.ListRolloutsRequest(page_size=1000, **fields)
        began = time.process_time()
        reply = await world.store.call("ListRollouts", request)
        assert time.process_time() - began < LONGEST_SECONDS, fields.keys()
        return len(reply.rollouts)

    assert await found(rollout_ids=many) == 300
    assert await found(rollout_ids=many, include_total_size=True, order_by="priority") == 300
    assert await found(group_ids=groups) == 1
    assert await found(statuses=[1] * 10_000) == 301
    assert await found(modes=[0] * 10_000, statuses=[6] * 10_000) == 0
    assert await found(rollout_ids=many, group_ids=groups, filter_logic=2) == 301
    request = worker_pb2.ListWorkersRequest(statuses=[1, 2, 3] * 3333, filter_logic=2)
    assert len((await world.store.call("ListWorkers", request)).workers) == 1
    await finish(world, grouped)
    began = time.process_time()
    waiting = world.store.wait_for_rollouts([*rollouts, grouped] * 33, timeout=0)
    assert [r.rollout_id for r in await waiting.results()] == [grouped]
    assert time.process_time() - began < LONGEST_SECONDS
    with pytest.raises(LightningStoreError, match="nobody-0"):
        await world.store.wait_for_rollouts(many).results()


STRANGE = [text for text in TEXTS if text not in ("", "latest") and len(text) < 256]


@pytest.mark.parametrize("text", STRANGE)
async def test_text_that_is_code_elsewhere_comes_back_byte_for_byte(
    world: World, text: str
) -> None:
    store = world.store
    own_id = text.replace("\0", "0")  # ids may not hold NUL
    resources = {text: LLM(text, text, api_key=text), text + "2": PromptTemplate(text, "jinja")}
    made = await store.add_resources(resources, resources_id=own_id)
    assert (made.resources_id, dict(made.resources)) == (own_id, resources)
    await store.enqueue_rollout(
        {text: text}, rollout_id=own_id, group_id=own_id, resources_id=own_id, metadata={text: text}
    )
    await store.enqueue_rollout(1, rollout_id="another", group_id="other")
    (rollout,) = await store.dequeue_rollouts(1, worker_id=own_id, request_id=own_id)
    assert (rollout.rollout_id, rollout.input, rollout.metadata) == (
        own_id,
        {text: text},
        {text: text},
    )
    own = (own_id, rollout.attempt.attempt_id)
    sent = batch(*own, text)
    sent.spans[0].trace_state = text
    sent.spans[0].attributes.add(key=text).value.string_value = text
    sent.spans[0].events.add(name=text)
    sent.scope.name = sent.schema_url = sent.resource_schema_url = text
    sent.resource.attributes.add(key=text).value.string_value = text
    await store.add_spans(sent)
    await store.heartbeat(own_id, stats={text: text}, attempts=[own])
    failure = Failure(text, text)
    await store.update_attempt(*own, status="failed", failure=failure, metadata={text: text})

    for filters in ({"name": text}, {"name_contains": text}):
        (span,) = await query(world, own_id, **filters)
        assert span.message.SerializeToString() == sent.spans[0].SerializeToString()
    for filters in (
        {"rollout_ids": [own_id]},
        {"rollout_id_contains": own_id},
        {"group_ids": [own_id]},
    ):
        (listed,) = await store.list_rollouts(**filters)
        assert (listed.rollout_id, listed.group_id) == (own_id, own_id)
    (attempt,) = await store.list_attempts(own_id)
    assert (attempt.failure, attempt.worker_id) == (failure, own_id)
    (worker,) = await store.list_workers(worker_id_contains=own_id)
    assert (worker.worker_id, worker.stats) == (own_id, {text: text})
    assert dict((await store.get_resources(own_id)).resources) == resources
    assert (await store.get_statistics()).queue_depth == 1
