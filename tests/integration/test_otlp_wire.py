"""OTLP's Export by hand: what exporters never send on purpose, and what they read of an answer."""

from __future__ import annotations

import os
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from lightningstore.service.rules.errors import Busy
from lightningstore.v1.error_reason_pb2 import ERROR_REASON_MALFORMED_MESSAGE
from lightningstore.v1.span_pb2 import IngestSpansResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import TraceServiceStub
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, names, query, snapshot

pytestmark = pytest.mark.asyncio

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


def attribute(key: str, value: str | int) -> KeyValue:
    kind = {"int_value": value} if isinstance(value, int) else {"string_value": value}
    return KeyValue(key=key, value=AnyValue(**kind))


def owner(ids: tuple[str, str]) -> list[KeyValue]:
    return [
        attribute("agentlightning.rollout_id", ids[0]),
        attribute("agentlightning.attempt_id", ids[1]),
    ]


def span(name: str, *attributes: KeyValue, trace_id: bytes = b"", span_id: bytes = b"") -> Span:
    return Span(
        name=name,
        trace_id=trace_id or os.urandom(16),
        span_id=span_id or os.urandom(8),
        attributes=attributes,
    )


def request(*spans: Span, resource: list[KeyValue] | None = None) -> ExportTraceServiceRequest:
    scope = ScopeSpans(spans=spans)
    group = ResourceSpans(scope_spans=[scope], resource=Resource(attributes=resource or ()))
    return ExportTraceServiceRequest(resource_spans=[group])


def field(number: int, data: bytes) -> bytes:
    """Return a field of bytes, encoded by hand: protobuf refuses to hold what nests too deep."""
    size, out = len(data), b""
    while size > 127:
        out += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + out + bytes([size]) + data


def nested(name: str, levels: int) -> bytes:
    """Return a span with an attribute of arrays in arrays, which take two messages a level."""
    value = AnyValue(string_value="x").SerializeToString()
    for _ in range(levels):
        value = field(5, field(1, value))
    return span(name).SerializeToString() + field(9, field(1, b"deep") + field(2, value))


async def ids(world: World) -> tuple[str, str]:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


async def send(
    channel: grpc.aio.Channel, message: Message | bytes, **options: Any
) -> ExportTraceServiceResponse:
    data = message if isinstance(message, bytes) else message.SerializeToString()
    call = channel.unary_unary(EXPORT, None, ExportTraceServiceResponse.FromString)
    return await call(data, **options)


def raw_group(resource: Resource, *spans: bytes) -> bytes:
    """Return an export request around serialised spans."""
    scope = b"".join(field(2, one) for one in spans)
    return field(1, field(1, resource.SerializeToString()) + field(2, scope))


async def test_full_success_has_no_partial_success(world: World, channel: grpc.aio.Channel) -> None:
    own = await ids(world)
    answer = await send(channel, request(span("a"), resource=owner(own)))
    assert answer == ExportTraceServiceResponse()
    assert await names(world, own[0]) == ["a"]


async def test_standard_stub_works(world: World, channel: grpc.aio.Channel) -> None:
    own = await ids(world)
    answer = await TraceServiceStub(channel).Export(request(span("a"), resource=owner(own)))
    assert answer == ExportTraceServiceResponse()


async def test_empty_request_is_a_success(channel: grpc.aio.Channel) -> None:
    assert await send(channel, ExportTraceServiceRequest()) == ExportTraceServiceResponse()
    assert await send(channel, request()) == ExportTraceServiceResponse()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (span("bad", trace_id=b"\1" * 15), "15"),
        (span("bad", trace_id=bytes(16)), "zero"),
        (span("bad", span_id=b"\1" * 9), "9"),
        (span("bad", span_id=bytes(8)), "zero"),
        (Span(name="bad"), "trace_id"),
        (span("bad", attribute("agentlightning.rollout_id", "ro-nope")), "ro-nope"),
        (span("bad", attribute("agentlightning.attempt_id", "at-nope")), "at-nope"),
    ],
    ids=["short trace", "zero trace", "long span", "zero span", "no ids", "rollout", "attempt"],
)
async def test_bad_span_is_counted_and_the_rest_stored(
    world: World, channel: grpc.aio.Channel, bad: Span, why: str
) -> None:
    own = await ids(world)
    answer = await send(channel, request(span("a"), bad, span("b"), resource=owner(own)))
    assert answer.partial_success.rejected_spans == 1
    assert why in answer.partial_success.error_message
    assert await names(world, own[0]) == ["a", "b"]


async def test_spans_without_attempt_are_counted_and_told_why(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    spans = [span("lost"), span("kept", *owner(own)), span("half", owner(own)[0])]
    answer = await send(channel, request(*spans))
    assert answer.partial_success.rejected_spans == 2
    assert "agentlightning.rollout_id" in answer.partial_success.error_message
    assert await names(world, own[0]) == ["kept"]


async def test_attempt_that_never_began_is_told(world: World, channel: grpc.aio.Channel) -> None:
    (waiting,) = await enqueue(world, 1)
    before = await snapshot(world)
    answer = await send(channel, request(span("a"), resource=owner((waiting, "latest"))))
    assert answer.partial_success.rejected_spans == 1
    assert await snapshot(world) == before


@pytest.mark.parametrize("levels", [50, 60, 200, 5000])
async def test_span_that_nests_too_deep_is_left_out_and_the_rest_stored(
    world: World, channel: grpc.aio.Channel, levels: int
) -> None:
    own = await ids(world)
    a, b = (span(name).SerializeToString() for name in "ab")
    data = raw_group(Resource(attributes=owner(own)), a, nested("deep", levels), b)
    answer = await send(channel, data)
    assert answer.partial_success.rejected_spans == 1
    assert "deep" in answer.partial_success.error_message
    assert await names(world, own[0]) == ["a", "b"]


async def test_span_is_stored_and_readable_or_refused_whatever_its_depth(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    stored = []
    for levels in range(30, 52):
        data = raw_group(Resource(attributes=owner(own)), nested(str(levels), levels))
        answer = await send(channel, data)
        if not answer.partial_success.rejected_spans:
            stored.append(str(levels))
    assert stored[0] == "30"
    assert len(stored) < 22
    assert await names(world, own[0]) == stored


async def test_ingest_rejects_a_batch_that_nests_too_deep_and_goes_on(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    good = batch(*own, "good").SerializeToString()
    deep = batch(*own).SerializeToString() + field(2, nested("deep", 60)) * 2
    call = channel.stream_unary(
        "/lightningstore.v1.LightningStoreService/IngestSpans",
        None,
        IngestSpansResponse.FromString,
    )
    result = (await call(iter([field(1, deep), field(1, good)]))).result
    assert (result.accepted_count, result.rejected_count) == (1, 2)
    assert result.rejections[0].span_count == 2
    assert result.rejections[0].reason == ERROR_REASON_MALFORMED_MESSAGE
    assert await names(world, own[0]) == ["good"]


async def test_span_too_large_is_counted_and_the_rest_stored(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    large = span("large", attribute("x", "x" * (4 << 20)))
    answer = await send(channel, request(large, span("small"), resource=owner(own)))
    assert answer.partial_success.rejected_spans == 1
    assert await names(world, own[0]) == ["small"]


async def test_export_sent_again_stores_nothing_twice(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    message = request(span("a"), span("b"), resource=owner(own))
    for _ in range(2):
        assert await send(channel, message) == ExportTraceServiceResponse()
    assert await names(world, own[0]) == ["a", "b"]


async def test_sequence_ids_may_be_texts_and_nonsense_is_numbered(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    key = "agentlightning.span_sequence_id"
    spans = [
        span("second", attribute(key, "9")),
        span("first", attribute(key, 4)),
        span("third", attribute(key, -3)),
        span("fourth", attribute(key, "x")),
        span("fifth", attribute(key, "1" * 5_000)),
    ]
    answer = await send(channel, request(*spans, resource=owner(own)))
    assert answer == ExportTraceServiceResponse()
    got = [(s.name, s.sequence_id) for s in await query(world, own[0])]
    assert got == [("first", 4), ("second", 9), ("third", 10), ("fourth", 11), ("fifth", 12)]


async def test_gzip_works(world: World, channel: grpc.aio.Channel) -> None:
    own = await ids(world)
    message = request(*(span("a") for _ in range(50)), resource=owner(own))
    await send(channel, message, compression=grpc.Compression.Gzip)
    assert len(await names(world, own[0])) == 50


async def test_busy_is_unavailable_with_retry_info_twice(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    assert world.service is not None

    def refuse() -> None:
        raise Busy("the disk does not keep up")

    admit, world.service.engine.committer.admit = world.service.engine.committer.admit, refuse
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await send(channel, request(span("a"), resource=owner(own)))
    world.service.engine.committer.admit = admit
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    trailers = dict(caught.value.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == code_pb2.UNAVAILABLE
    details = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(details) for detail in status.details)
    trailer = error_details_pb2.RetryInfo.FromString(trailers["google.rpc.retryinfo-bin"])
    assert details == trailer
    assert trailer.retry_delay.ToMilliseconds() > 0
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert (info.reason, info.domain) == ("ERROR_REASON_BUSY", "lightningstore")
    assert await names(world, own[0]) == []
