"""Text that is not UTF-8, from those who send spans: it costs a character, not a span, and never a batch."""

from __future__ import annotations

import json
import re

import grpc.aio
import pytest
from lightningstore.v1.span_pb2 import AddSpansResponse, IngestSpansResponse
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from tests.contract.conftest import World
from tests.contract.helpers import batch, names, query
from tests.integration.test_otlp_http import (
    JSON,
    PROTOBUF,
    as_json,
    json_span,
    port_of,
    post,
)
from tests.integration.test_otlp_http import world as http_world
from tests.integration.test_otlp_wire import (
    attribute,
    field,
    ids,
    nested,
    owner,
    raw_group,
    request,
    send,
    span,
)

__all__ = ["http_world"]  # the fixture

pytestmark = pytest.mark.asyncio
SERVICE = "/lightningstore.v1.LightningStoreService"
MARK = "\N{REPLACEMENT CHARACTER}"


def spoiled(data: bytes) -> bytes:
    """Return a message in whose texts question marks are no UTF-8."""
    return re.sub(rb"(?<=[a-z0-9])\?", b"\xff", data)


async def test_half_a_surrogate_pair_in_json_costs_a_character(http_world: World) -> None:
    own = await ids(http_world)
    cut_off = [{"key": "k", "value": {"stringValue": "said \U0001f600"[:6] + "HALF"}}]
    body = as_json(own, json_span("a", attributes=cut_off), json_span("b"))
    body = body.replace(b"HALF", rb"\ud83d")  # as JSON.stringify writes it
    answer = await post(port_of(http_world), body, JSON)
    assert (answer.status, json.loads(answer.body)) == (200, {})
    a, b = await query(http_world, own[0])
    assert (a.name, b.name) == ("a", "b")
    assert a.otlp.attributes[0].value.string_value.endswith(MARK)


@pytest.mark.parametrize("kind", ["span", "resource", "scope"])
async def test_bad_text_in_an_export_costs_a_character(
    world: World, channel: grpc.aio.Channel, kind: str
) -> None:
    own = await ids(world)
    where = {kind: "a?"}
    resource = [*owner(own), attribute("r", where.get("resource", ""))]
    bad = span(where.get("span", "a"), attribute("k", where.get("span", "")), trace_id=b"\1" * 16)
    scope = ScopeSpans(spans=[bad, span("b", span_id=b"\1" * 8)])
    scope.scope.name = where.get("scope", "")
    group = ResourceSpans(scope_spans=[scope], resource=Resource(attributes=resource))
    answer = await send(channel, field(1, spoiled(group.SerializeToString())))
    assert not answer.HasField("partial_success")
    stored = {s.name.rstrip(MARK): s for s in await query(world, own[0])}
    assert set(stored) == {"a", "b"}
    found = {
        "span": stored["a"].name,
        "resource": stored["a"].resource.attributes[-1].value.string_value,
        "scope": stored["a"].scope.name,
    }
    assert found[kind] == f"a{MARK}"


async def test_span_beside_one_that_nests_too_deep_is_repaired(
    world: World, channel: grpc.aio.Channel
) -> None:
    own = await ids(world)
    bad = spoiled(span("bad?").SerializeToString())
    data = raw_group(Resource(attributes=owner(own)), bad, nested("deep", 60))
    answer = await send(channel, data)
    assert answer.partial_success.rejected_spans == 1
    assert "deep" in answer.partial_success.error_message
    assert await names(world, own[0]) == [f"bad{MARK}"]


@pytest.mark.parametrize("count", [1, 3_000])
async def test_bad_text_in_an_ingested_batch_costs_a_character(
    world: World, channel: grpc.aio.Channel, count: int
) -> None:
    own = await ids(world)
    for n, method in enumerate(("AddSpans", "IngestSpans")):
        sent = batch(*own, f"{n}bad?", *["good"] * count)
        for i, one in enumerate(sent.spans):
            one.trace_id, one.span_id = b"\1" * 16, bytes([n + 1]) * 4 + i.to_bytes(4, "big")
        data = field(1, spoiled(sent.SerializeToString()))
        if method == "AddSpans":
            call = channel.unary_unary(f"{SERVICE}/{method}", None, AddSpansResponse.FromString)
            result = (await call(data)).result
        else:
            stream = channel.stream_unary(
                f"{SERVICE}/{method}", None, IngestSpansResponse.FromString
            )
            result = (await stream(iter([data]))).result
        assert (result.accepted_count, result.rejected_count) == (count + 1, 0)
    found = [name for name in await names(world, own[0]) if name != "good"]
    assert found == [f"0bad{MARK}", f"1bad{MARK}"]


async def test_names_of_attempts_are_not_guessed(world: World, channel: grpc.aio.Channel) -> None:
    own = await ids(world)
    data = spoiled(request(span("a"), resource=owner((own[0] + "?", own[1]))).SerializeToString())
    answer = await send(channel, data)
    assert answer.partial_success.rejected_spans == 1
    assert "no rollout" in answer.partial_success.error_message


async def test_bad_text_over_http_costs_a_character(http_world: World) -> None:
    own = await ids(http_world)
    bad = span("a?", trace_id=b"\1" * 16, span_id=b"\1" * 8)
    data = spoiled(request(bad, resource=owner(own)).SerializeToString())
    answer = await post(port_of(http_world), data, PROTOBUF)
    assert (answer.status, answer.body) == (200, b"")
    assert await names(http_world, own[0]) == [f"a{MARK}"]
