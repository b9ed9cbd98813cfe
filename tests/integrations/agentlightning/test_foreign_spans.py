"""Spans of other writers: whatever they hold, the rollout can be read."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from agentlightning.types import AttemptedRollout, Span
from lightningstore.client import AsyncLightningStore
from lightningstore.integrations.agentlightning import GrpcLightningStore
from lightningstore.integrations.agentlightning._spans import EXTRA, to_otlp
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1 import trace_pb2

pytestmark = pytest.mark.asyncio

IDS = itertools.count(1)
DEEP = AnyValue(string_value="leaf")
for _ in range(30):
    DEEP = AnyValue(array_value=ArrayValue(values=[DEEP]))

VALUES = [
    AnyValue(),
    AnyValue(string_value=""),
    AnyValue(string_value="no JSON"),
    AnyValue(string_value="[1]"),
    AnyValue(string_value='"text"'),
    AnyValue(string_value="null"),
    AnyValue(string_value="{"),
    AnyValue(string_value="[" * 100_000),
    AnyValue(string_value='{"n": %s}' % ("1" * 5000)),
    AnyValue(string_value='{"text": "\\ud800"}'),
    AnyValue(string_value='{"name": "another", "rollout_id": "another"}'),
    AnyValue(bool_value=True),
    AnyValue(int_value=7),
    AnyValue(double_value=float("nan")),
    AnyValue(bytes_value=b"{}"),
    AnyValue(array_value=ArrayValue(values=[AnyValue(), AnyValue(int_value=1)])),
    AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="a", value=AnyValue(int_value=1))])),
    DEEP,
]


def a_span(**fields: Any) -> trace_pb2.Span:
    number = next(IDS)
    ids = {"trace_id": number.to_bytes(16, "big"), "span_id": number.to_bytes(8, "big")}
    return trace_pb2.Span(**{**ids, "name": "foreign", **fields})


async def stored(
    address: str, store: GrpcLightningStore, *spans: trace_pb2.Span, **head: Any
) -> tuple[AttemptedRollout, list[Span]]:
    """Store spans as another client does; returns what the adapter reads, and can send on."""
    rollout = await store.start_rollout("x")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    batch = SpanBatch(**ids, spans=spans)
    for field, value in head.items():
        getattr(batch, field).CopyFrom(value)
    async with AsyncLightningStore(address) as client:
        await client.add_spans(batch)
    found = list(await store.query_spans(rollout.rollout_id))
    for span in found:
        span.model_dump_json()
        to_otlp(span)
    return rollout, found


async def test_no_value_of_the_attribute_of_extra_fields_makes_a_rollout_unreadable(
    address: str, store: GrpcLightningStore
) -> None:
    spans = [a_span(attributes=[KeyValue(key=EXTRA, value=value)]) for value in VALUES]
    rollout, found = await stored(address, store, *spans)
    assert len(found) == len(VALUES)
    for span, value in zip(found, VALUES, strict=True):
        # What the adapter cannot have written is an attribute like any other.
        assert EXTRA in span.attributes, value
        assert (span.name, span.rollout_id) == ("foreign", rollout.rollout_id)


async def test_extra_fields_that_the_adapter_wrote_come_back_as_fields(
    address: str, store: GrpcLightningStore
) -> None:
    pair = KeyValue(key=EXTRA, value=AnyValue(string_value=json.dumps({"note": "é\t"})))
    _, (span,) = await stored(address, store, a_span(attributes=[pair]))
    assert span.model_extra == {"note": "é\t"}
    assert EXTRA not in span.attributes


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
async def test_every_kind_of_value_is_read_wherever_it_stands(
    address: str, store: GrpcLightningStore, value: AnyValue
) -> None:
    pairs = [KeyValue(key="odd", value=value), KeyValue(key="", value=value)]
    span = a_span(
        attributes=pairs,
        events=[trace_pb2.Span.Event(name="e", attributes=pairs)],
        links=[trace_pb2.Span.Link(trace_id=b"\1", span_id=b"", attributes=pairs)],
    )
    resource = SpanBatch().resource
    resource.attributes.extend([*pairs, KeyValue(key="agentlightning.rollout_id", value=value)])
    rollout = await store.start_rollout("x")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    async with AsyncLightningStore(address) as client:
        await client.add_spans(SpanBatch(**ids, spans=[span], resource=resource))
    (found,) = await store.query_spans(rollout.rollout_id)
    assert found.attributes.keys() == {"odd", ""}
    assert found.events[0].attributes.keys() == found.attributes.keys()
    assert "odd" in found.resource.attributes
    found.model_dump_json()


async def test_numbers_that_these_enums_do_not_know_read_as_unset(
    address: str, store: GrpcLightningStore
) -> None:
    odd: Any = a_span(kind=99)
    odd.status.code = 77
    _, (span,) = await stored(address, store, odd)
    assert span.status.status_code == "UNSET"
    assert "kind" not in (span.model_extra or {})


async def test_odd_states_flags_and_times_are_read(address: str, store: GrpcLightningStore) -> None:
    odd = a_span(
        trace_state="=,a,b=c=d,,  ,é=ü",
        flags=0xFFFFFFFF,
        start_time_unix_nano=2**64 - 1,
        end_time_unix_nano=1,
        parent_span_id=b"\xff" * 8,
    )
    scope = SpanBatch().scope
    scope.name, scope.version = "a, b)(", "{}"
    rollout = await store.start_rollout("x")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    async with AsyncLightningStore(address) as client:
        await client.add_spans(SpanBatch(**ids, spans=[odd], scope=scope))
    (span,) = await store.query_spans(rollout.rollout_id)
    assert span.parent_id == "f" * 16
    assert span.start_time == pytest.approx(2**64 / 1e9)
    span.model_dump_json()
