"""OTLP over both transports: the namespace of an export, by header and by resource attribute."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import status_pb2
from lightningstore.service.rpc import otlp
from lightningstore.service.rules import wire
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec
from lightningstore.v1.span_pb2 import QuerySpansRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from tests.contract.conftest import World
from tests.namespaced import Caller, metadata

pytestmark = pytest.mark.asyncio

NAMESPACES = ("default", "a", "b")


class Exporter:
    """Sends exports by one of the transports. In each namespace there is an attempt at rollout r."""

    def __init__(self, world: World, channel: grpc.aio.Channel, transport: str) -> None:
        self._world = world
        self.channel = channel
        self._transport = transport
        self.caller = Caller(channel)
        self._count = 0

    async def export(
        self, *groups: ResourceSpans, header: str = ""
    ) -> tuple[str, ExportTraceServiceResponse]:
        """Return how the export ends, as the name of a status or a number of HTTP, and its answer."""
        request = ExportTraceServiceRequest(resource_spans=groups)
        if self._transport == "grpc":
            call = self.channel.unary_unary(f"/{otlp.SERVICE}/Export")
            try:
                answer = await call(request.SerializeToString(), metadata=metadata(header))
            except grpc.aio.AioRpcError as error:
                return error.code().name, ExportTraceServiceResponse()
            return "OK", ExportTraceServiceResponse.FromString(answer)
        assert self._world.service is not None
        url = f"http://127.0.0.1:{self._world.service.info.otlp_http_port}/v1/traces"
        headers = {"Content-Type": "application/x-protobuf", **dict(metadata(header))}
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=request.SerializeToString(), headers=headers) as response,
        ):
            body = await response.read()
            if response.status == 200:
                return "OK", ExportTraceServiceResponse.FromString(body)
            names = {404: "NOT_FOUND", 400: "INVALID_ARGUMENT"}
            assert status_pb2.Status.FromString(body).message
            return names[response.status], ExportTraceServiceResponse()

    def group(self, name: str, namespace: str = "", spans: int = 1) -> ResourceSpans:
        """Return spans of the attempt, with the resource attribute for a namespace."""
        attributes = {"agentlightning.rollout_id": "r", "agentlightning.attempt_id": "latest"}
        if namespace:
            attributes["lightningstore.namespace"] = namespace
        made = []
        for _ in range(spans):
            self._count += 1
            span_id = self._count.to_bytes(8, "big")
            made.append(
                Span(trace_id=b"t" * 16, span_id=span_id, name=name, start_time_unix_nano=1)
            )
        return ResourceSpans(
            resource=Resource(
                attributes=[
                    KeyValue(key=key, value=AnyValue(string_value=value))
                    for key, value in attributes.items()
                ]
            ),
            scope_spans=[ScopeSpans(spans=made)],
        )

    async def stored(self) -> dict[str, list[str]]:
        """Return the names of the spans of each namespace."""
        found = {}
        for namespace in NAMESPACES:
            request = QuerySpansRequest(rollout_id="r")
            answers = await self.caller.call("QuerySpans", request, namespace)
            names = [s.name for answer in answers for b in answer.batches for s in b.spans]
            found[namespace] = sorted(names)
        return found


@pytest_asyncio.fixture(params=["memory-grpc", "sqlite-http"])
async def exporter(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Exporter]:
    backend, transport = request.param.split("-")
    world = World(f"{backend}-grpc", tmp_path, otlp_http_port=0)
    await world.start()
    assert world.server is not None
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        exporter = Exporter(world, channel, transport)
        for namespace in NAMESPACES:
            if namespace != "default":
                await exporter.caller.create(namespace)
            spec = RolloutSpec(rollout_id="r", input_json=b"{}")
            await exporter.caller.call("StartRollout", StartRolloutRequest(rollout=spec), namespace)
        yield exporter
    await world.stop()


async def test_header_names_the_namespace_and_the_attribute_wins(exporter: Exporter) -> None:
    await exporter.export(exporter.group("plain"))
    await exporter.export(exporter.group("by header"), header="a")
    await exporter.export(exporter.group("by attribute", "b"))
    await exporter.export(exporter.group("both", "b"), header="a")
    await exporter.export(exporter.group("back", "default"), header="a")
    assert await exporter.stored() == {
        "default": ["back", "plain"],
        "a": ["by header"],
        "b": ["both", "by attribute"],
    }


async def test_one_export_may_have_spans_of_several_namespaces(exporter: Exporter) -> None:
    code, answer = await exporter.export(
        exporter.group("1", "b"), exporter.group("2"), exporter.group("3", "b"), header="a"
    )
    assert (code, answer) == ("OK", ExportTraceServiceResponse())
    assert await exporter.stored() == {"default": [], "a": ["2"], "b": ["1", "3"]}


@pytest.mark.parametrize(("name", "text"), [("nowhere", "no namespace"), ("Not valid", "must be")])
async def test_attribute_of_no_namespace_rejects_only_its_spans(
    exporter: Exporter, name: str, text: str
) -> None:
    code, answer = await exporter.export(
        exporter.group("lost", name, spans=3), exporter.group("kept"), header="a"
    )
    assert code == "OK"
    assert answer.partial_success.rejected_spans == 3
    assert text in answer.partial_success.error_message
    assert await exporter.stored() == {"default": [], "a": ["kept"], "b": []}


async def test_header_of_no_namespace_fails_the_export(exporter: Exporter) -> None:
    assert (await exporter.export(exporter.group("x"), header="nowhere"))[0] == "NOT_FOUND"
    assert (await exporter.export(exporter.group("x"), header="UPPER"))[0] == "INVALID_ARGUMENT"
    assert await exporter.stored() == {"default": [], "a": [], "b": []}


async def test_large_export_reaches_its_namespaces(exporter: Exporter) -> None:
    code, answer = await exporter.export(
        exporter.group("big", "b", spans=3000),
        exporter.group("lost", "nowhere", spans=2000),
        exporter.group("own", spans=1),
    )
    assert code == "OK"
    assert answer.partial_success.rejected_spans == 2000
    found = await exporter.stored()
    assert {name: len(spans) for name, spans in found.items()} == {"default": 1, "a": 0, "b": 3000}


async def test_malformed_scope_stores_nothing_in_any_namespace(
    exporter: Exporter,
) -> None:
    good = exporter.group("good", "b").SerializeToString()
    bad = exporter.group("bad", "a")
    del bad.scope_spans[:]
    unreadable = wire.field(2, b"\x12\x09cut")  # a scope whose span ends early
    body = wire.field(1, good) + wire.field(1, bad.SerializeToString() + unreadable)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await exporter.channel.unary_unary(f"/{otlp.SERVICE}/Export")(body)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert await exporter.stored() == {"default": [], "a": [], "b": []}
