"""OTLP over HTTP: OpenTelemetry's own exporter, unchanged, and what no exporter sends."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import random
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from google.protobuf import json_format
from google.rpc import code_pb2, error_details_pb2, status_pb2
from lightningstore.service.rules.errors import Busy, StorageFailed
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult

from tests.contract.conftest import World
from tests.contract.helpers import claim, names, query, snapshot
from tests.integration.test_otlp_sdk import Recorder, owner, spans
from tests.integration.test_otlp_wire import field, nested, raw_group, request, span
from tests.integration.test_otlp_wire import owner as attributes_of

pytestmark = pytest.mark.asyncio

PROTOBUF, JSON = "application/x-protobuf", "application/json"
MOST = 5 << 20
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest_asyncio.fixture(params=["memory-grpc", "sqlite-grpc"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh world that serves HTTP too, and takes 5 MiB a message."""
    world = World(request.param, tmp_path, otlp_http_port=0, max_message_bytes=MOST)
    await world.start()
    yield world
    await world.stop()


def port_of(world: World) -> int:
    assert world.service is not None
    return world.service.info.otlp_http_port


async def ids(world: World) -> tuple[str, str]:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


async def export(
    port: int, work: Any, resource: dict[str, str] | None = None, scheme: str = "http", **more: Any
) -> list[SpanExportResult]:
    """Run `work` with a tracer in a thread; return what the exporter reported."""

    def run() -> list[SpanExportResult]:
        url = f"{scheme}://127.0.0.1:{port}/v1/traces"
        exporter = Recorder(OTLPSpanExporter(endpoint=url, **more))  # type: ignore[arg-type]
        provider = TracerProvider(resource=Resource.create(resource or {}), shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        work(provider.get_tracer("lib", "1.2"))
        provider.force_flush()
        provider.shutdown()
        return exporter.results

    return await asyncio.to_thread(run)


class Answer:
    """What came back."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def read(self, message: Any) -> Any:
        """Return the body as message, in the encoding that it says it is in."""
        if self.headers["Content-Type"] == PROTOBUF:
            return type(message).FromString(self.body)
        assert self.headers["Content-Type"].startswith(JSON)
        return json_format.Parse(self.body, message)

    def reason(self) -> str:
        """Return the reason of the google.rpc.Status that it must be."""
        info = error_details_pb2.ErrorInfo()
        assert self.read(status_pb2.Status()).details[0].Unpack(info)
        return info.reason.removeprefix("ERROR_REASON_")


async def post(port: int, body: Any, kind: str = PROTOBUF, **headers: str) -> Answer:
    return await send(port, "POST", "/v1/traces", body, {"Content-Type": kind, **headers})


async def send(
    port: int, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> Answer:
    url = f"http://127.0.0.1:{port}{path}"
    body = io.BytesIO(body) if isinstance(body, bytes) else body  # aiohttp warns of large bytes
    async with (
        aiohttp.ClientSession() as session,
        session.request(method, url, data=body, headers=headers) as answer,
    ):
        return Answer(answer.status, answer.headers, await answer.read())


def as_json(own: tuple[str, str], *described: dict[str, Any]) -> bytes:
    """Return an export of spans as OTLP's JSON has it."""
    resource = [
        {"key": f"agentlightning.{name}_id", "value": {"stringValue": value}}
        for name, value in zip(("rollout", "attempt"), own, strict=True)
    ]
    scope = {"scope": {"name": "lib"}, "spans": described}
    group = {"resource": {"attributes": resource}, "scopeSpans": [scope]}
    return json.dumps({"resourceSpans": [group]}).encode()


def json_span(name: str, **more: Any) -> dict[str, Any]:
    return {"traceId": TRACE, "spanId": f"{random.getrandbits(64):016x}", "name": name, **more}


@pytest.mark.parametrize("compression", list(Compression))
async def test_exporter_unchanged_stores_its_spans(world: World, compression: Compression) -> None:
    own = await ids(world)
    resource = {"service.name": "agent", **owner(own)}
    results = await export(port_of(world), spans("a", "b", "c"), resource, compression=compression)
    assert set(results) == {SpanExportResult.SUCCESS}
    stored = await query(world, own[0])
    assert [(s.name, s.sequence_id) for s in stored] == [("a", 1), ("b", 2), ("c", 3)]
    assert stored[0].resource_attributes["service.name"] == "agent"
    assert (stored[0].scope.name, stored[0].scope.version) == ("lib", "1.2")


async def test_headers_name_the_attempt_where_no_attribute_does(world: World) -> None:
    own, other = await ids(world), await ids(world)

    def work(tracer: Any) -> None:
        spans("by header")(tracer)
        spans("by attribute", **owner(other))(tracer)

    headers = {"X-Lightning-Rollout-Id": own[0], "x-lightning-attempt-id": own[1]}
    await export(port_of(world), work, headers=headers)
    assert await names(world, own[0]) == ["by header"]
    assert await names(world, other[0]) == ["by attribute"]


async def test_thousands_of_spans_arrive_once_each(world: World) -> None:
    own = await ids(world)
    texts = [f"s{n}" for n in range(2000)]
    await export(port_of(world), spans(*texts), owner(own), compression=Compression.Gzip)
    assert sorted(await names(world, own[0])) == sorted(texts)


async def test_json_is_read_by_the_rules_of_otlp(world: World) -> None:
    own = await ids(world)
    link = {"traceId": TRACE.upper(), "spanId": SPAN, "unknown": {"deep": [1]}}
    described = {
        "traceId": TRACE.upper(),
        "spanId": SPAN,
        "parentSpanId": "",
        "name": "über",
        "kind": 3,
        "startTimeUnixNano": "1700000000000000001",
        "endTimeUnixNano": 1700000000000000002,
        "attributes": [
            {"key": "int", "value": {"intValue": "9007199254740993"}},
            {"key": "bytes", "value": {"bytesValue": "AQI="}},
            {"key": "list", "value": {"arrayValue": {"values": [{"boolValue": True}]}}},
        ],
        "links": [link],
        "status": {"code": 2},
        "fromTheFuture": [{}],
        "traceState": None,
    }
    answer = await post(port_of(world), as_json(own, described), f"{JSON}; charset=utf-8")
    assert (answer.status, answer.body) == (200, b"{}")
    (stored,) = await query(world, own[0])
    assert (stored.trace_id, stored.span_id, stored.parent_span_id) == (TRACE, SPAN, "")
    assert stored.name == "über"
    assert (stored.otlp.kind, stored.otlp.status.code) == (3, 2)
    assert stored.start_time_ns == 1700000000000000001
    assert stored.end_time_ns == 1700000000000000002
    assert stored.attributes == {"int": 9007199254740993, "bytes": b"\1\2", "list": [True]}
    assert stored.otlp.links[0].trace_id.hex() == TRACE
    assert stored.otlp.links[0].span_id.hex() == SPAN


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_refused_spans_are_a_partial_success(world: World, kind: str) -> None:
    own = await ids(world)
    if kind == JSON:
        body = as_json(own, json_span("a"), json_span("bad", spanId="00"), json_span("b"))
    else:
        spans_ = span("a"), span("bad", span_id=b"\1"), span("b")
        body = request(*spans_, resource=attributes_of(own)).SerializeToString()
    answer = await post(port_of(world), body, kind)
    partial = answer.read(ExportTraceServiceResponse()).partial_success
    assert (answer.status, partial.rejected_spans) == (200, 1)
    assert "span_id" in partial.error_message
    assert await names(world, own[0]) == ["a", "b"]


@pytest.mark.parametrize("levels", [42, 45, 60, 300, 5000])
@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_span_that_nests_too_deep_is_left_out_and_the_rest_stored(
    world: World, kind: str, levels: int
) -> None:
    own = await ids(world)
    if kind == JSON:
        deep = '{"arrayValue":{"values":[' * levels + '{"intValue":1}' + "]}}" * levels
        described = json_span("deep", attributes=[{"key": "deep", "value": "here"}])
        body = as_json(own, json_span("a"), described).replace(b'"here"', deep.encode())
    else:
        resource = ExportTraceServiceRequest.FromString(
            request(resource=attributes_of(own)).SerializeToString()
        )
        plain = span("a").SerializeToString()
        body = raw_group(resource.resource_spans[0].resource, plain, nested("deep", levels))
    answer = await post(port_of(world), body, kind)
    if levels == 5000 and kind == JSON:  # beyond what can be read past
        assert (answer.status, answer.reason()) == (400, "MALFORMED_MESSAGE")
        return
    assert answer.status == 200
    partial = answer.read(ExportTraceServiceResponse()).partial_success
    stored = await names(world, own[0])
    if levels == 42:
        assert (partial.rejected_spans, stored) == (0, ["a", "deep"])
    elif levels > 45 or kind == JSON:
        assert (partial.error_message, stored) == ("1 spans: nests too deep", ["a"])


BAD_JSON = [
    b"",
    b"null",
    b"{",
    b"\xff",
    b'{"resourceSpans":5}',
    b'{"resourceSpans":[null]}',
    b'{"resourceSpans":[{"resource":{"attributes":5}}]}',
    b'{"resourceSpans":[{"scopeSpans":[{"spans":5}]}]}',
    b'{"resourceSpans":[{"scopeSpans":[{"scope":[]}]}]}',
]


@pytest.mark.parametrize("body", BAD_JSON, ids=range(len(BAD_JSON)))
async def test_bad_json_is_400_and_stores_nothing(world: World, body: bytes) -> None:
    own = await ids(world)
    before = await snapshot(world)
    good = as_json(own, json_span("good"))
    body = body.replace(b'{"resourceSpans": [', b'{"resourceSpans":[')
    if body.startswith(b'{"resourceSpans":['):  # in one request with a good one
        body = good[:-2] + b", " + body[len(b'{"resourceSpans":[') :]
    answer = await post(port_of(world), body, JSON)
    assert answer.status == 400
    assert answer.reason() in ("MALFORMED_MESSAGE", "FIELD_INVALID")
    assert await snapshot(world) == before


BAD_SPANS: list[tuple[Any, str]] = [
    (json_span("x", traceId="zz"), "span.traceId: must be hex digits"),
    (json_span("x", spanId="abc"), "span.spanId: must be hex digits"),
    (json_span("x", parentSpanId="é"), "span.parentSpanId: must be hex digits"),
    (json_span("x", links=[{"spanId": "g"}]), "span.links[0].spanId: must be hex digits"),
    (json_span("x", startTimeUnixNano=-1), "span: "),
    (json_span("x", kind={}), "span: "),
    (json_span("x", attributes=[{"key": "n", "value": {"intValue": 1 << 63}}]), "span: "),
    (5, "span: must be an object"),
    (None, "trace_id"),
]


@pytest.mark.parametrize(("bad", "why"), BAD_SPANS, ids=range(len(BAD_SPANS)))
async def test_bad_spans_in_json_are_left_out_and_the_rest_stored(
    world: World, bad: Any, why: str
) -> None:
    own = await ids(world)
    body = as_json(own, json_span("a"), bad, bad, json_span("b"))
    answer = await post(port_of(world), body, JSON)
    partial = answer.read(ExportTraceServiceResponse()).partial_success
    assert (answer.status, partial.rejected_spans) == (200, 2)
    assert partial.error_message.startswith(f"2 spans: {why}")
    assert await names(world, own[0]) == ["a", "b"]


@pytest.mark.parametrize("empty", [0, 1, 100_000])
async def test_packed_bodies_may_have_several_members(world: World, empty: int) -> None:
    own = await ids(world)
    body = as_json(own, json_span("a"), json_span("b" * 20_000))
    half = len(body) // 2
    packed = gzip.compress(body[:half]) + gzip.compress(b"") * empty + gzip.compress(body[half:])
    answer = await post(port_of(world), packed, JSON, **{"Content-Encoding": "gzip"})
    assert (answer.status, answer.body) == (200, b"{}")
    assert await names(world, own[0]) == ["a", "b" * 20_000]


STATUSES: list[tuple[str, int, str, str, bytes, dict[str, str]]] = [
    ("no protobuf", 400, "POST", "/v1/traces", b"\xff", {"Content-Type": PROTOBUF}),
    ("no kind", 415, "POST", "/v1/traces", b"x", {"Content-Type": "text/plain"}),
    (
        "br",
        415,
        "POST",
        "/v1/traces",
        b"x",
        {"Content-Type": PROTOBUF, "Content-Encoding": "br"},
    ),
    (
        "no gzip",
        400,
        "POST",
        "/v1/traces",
        b"x",
        {"Content-Type": JSON, "Content-Encoding": "gzip"},
    ),
    (
        "half a gzip",
        400,
        "POST",
        "/v1/traces",
        gzip.compress(b"{}" * 99)[:-9],
        {"Content-Type": JSON, "Content-Encoding": "gzip"},
    ),
    (
        "a gzip and more",
        400,
        "POST",
        "/v1/traces",
        gzip.compress(b"{}") + b"{}",
        {"Content-Type": JSON, "Content-Encoding": "gzip"},
    ),
    ("GET", 405, "GET", "/v1/traces", b"", {}),
    ("PUT", 405, "PUT", "/v1/traces", b"", {"Content-Type": PROTOBUF}),
    ("root", 404, "POST", "/", b"", {"Content-Type": PROTOBUF}),
    ("metrics", 404, "POST", "/v1/metrics", b"", {"Content-Type": JSON}),
    ("below", 404, "POST", "/v1/traces/x", b"", {"Content-Type": PROTOBUF}),
]


@pytest.mark.parametrize("case", STATUSES, ids=[case[0] for case in STATUSES])
async def test_what_is_no_export_gets_its_status_and_a_reason(world: World, case: Any) -> None:
    _, status, method, path, body, headers = case
    answer = await send(port_of(world), method, path, body, headers)
    assert answer.status == status
    assert answer.reason() in ("MALFORMED_MESSAGE", "FIELD_INVALID")
    kind = PROTOBUF if headers.get("Content-Type") == PROTOBUF else JSON
    assert answer.headers["Content-Type"].startswith(kind)
    if status == 405:
        assert answer.headers["Allow"] == "POST"


def chunks(data: bytes) -> AsyncIterator[bytes]:
    async def parts() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 65536):
            yield data[start : start + 65536]

    return parts()


async def test_body_above_the_limit_is_413_however_it_comes(world: World) -> None:
    port, most = port_of(world), MOST
    whole = field(15, bytes(most - 5))  # an unknown field: a request that says nothing
    assert len(whole) == most
    unpacked: list[str] = []
    bombs = [gzip.compress(bytes(100 << 20)), zlib.compress(whole + b"\0")]
    assert (await post(port, whole)).status == 200
    assert (await post(port, chunks(whole))).status == 200
    assert (await post(port, gzip.compress(whole), **{"Content-Encoding": "gzip"})).status == 200
    for answer in (
        await post(port, whole + b"\0"),
        await post(port, chunks(whole + b"\0")),
        await post(port, bombs[0], **{"Content-Encoding": "gzip"}),
        await post(port, bombs[1], **{"Content-Encoding": "deflate"}),
        await post(port, bombs[0], JSON, **{"Content-Encoding": "gzip"}),
        await post(port, gzip.compress(whole) * 2, **{"Content-Encoding": "gzip"}),
    ):
        assert (answer.status, answer.reason()) == (413, "PAYLOAD_TOO_LARGE")
        if answer.read(status_pb2.Status()).message.startswith("decompressed"):
            unpacked.append(answer.read(status_pb2.Status()).message)
    # Not one byte more was unpacked than it takes to know that it is too much.
    assert unpacked == [f"decompressed body: {most + 1} bytes, at most {most} are allowed"] * 4


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
async def test_span_above_its_limit_is_left_out_and_the_rest_stored(
    world: World, kind: str
) -> None:
    own, most = await ids(world), 4 << 20
    if kind == JSON:
        body = as_json(own, json_span("a"), json_span("x" * most), json_span("b"))
    else:
        large = span("a"), span("x" * most), span("b")
        body = request(*large, resource=attributes_of(own)).SerializeToString()
    answer = await post(port_of(world), body, kind)
    partial = answer.read(ExportTraceServiceResponse()).partial_success
    assert partial.rejected_spans == 1
    assert f"at most {most}" in partial.error_message
    assert await names(world, own[0]) == ["a", "b"]


@pytest.mark.parametrize("kind", [PROTOBUF, JSON])
@pytest.mark.parametrize("error", [Busy("too much"), StorageFailed("no disk")])
async def test_what_may_be_repeated_is_503_with_the_time_to_wait(
    world: World, kind: str, error: Any
) -> None:
    assert world.service is not None

    async def refuse(*_: Any) -> None:
        raise error

    world.service.engine.barrier = refuse  # type: ignore[method-assign]
    answer = await post(port_of(world), b"" if kind == PROTOBUF else b"{}", kind)
    del world.service.engine.barrier
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    status = answer.read(status_pb2.Status())
    assert status.code == code_pb2.UNAVAILABLE
    assert any(d.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for d in status.details)


async def test_exporter_waits_as_long_as_busy_says_and_loses_nothing(world: World) -> None:
    own = await ids(world)
    assert world.service is not None
    store, tries = world.service, []
    barrier = store.engine.barrier

    async def refuse_once() -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise Busy("the disk does not keep up")
        await barrier()

    store.engine.barrier = refuse_once  # type: ignore[method-assign]
    results = await export(port_of(world), spans("a", "b"), owner(own))
    del store.engine.barrier
    assert results == [SpanExportResult.SUCCESS]
    assert await names(world, own[0]) == ["a", "b"]
    assert len(tries) == 2
    assert tries[1] - tries[0] >= 0.95


async def test_defect_is_500_with_an_id_that_the_log_has(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    assert world.service is not None

    async def fail() -> None:
        raise RuntimeError("planted")

    world.service.engine.barrier = fail  # type: ignore[method-assign]
    answer = await post(port_of(world), b"")
    del world.service.engine.barrier
    assert (answer.status, answer.reason()) == (500, "INTERNAL")
    assert b"planted" not in answer.body
    assert "planted" in caplog.text
