"""Spans: what goes in comes out, in order, once."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from agentlightning.types import (
    AttemptedRollout,
    Event,
    Link,
    OtelResource,
    Span,
    SpanContext,
    TraceStatus,
)
from lightningstore.client import AsyncLightningStore
from lightningstore.integrations.agentlightning import GrpcLightningStore, _traces
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.trace import Link as OtelLink
from opentelemetry.trace import SpanKind, Status, StatusCode

pytestmark = pytest.mark.asyncio


def a_span(rollout: AttemptedRollout, **fields: Any) -> Span:
    """Return a span of a rollout's attempt, as agentlightning makes them up."""
    fields.setdefault("attributes", {"n": 1})
    fields.setdefault("name", "step")
    ids = {"rollout_id": rollout.rollout_id, "attempt_id": rollout.attempt.attempt_id}
    return Span.from_attributes(**{**ids, **fields})


def full_span(rollout: AttemptedRollout) -> Span:
    """Return a span with a value in every field."""
    context = SpanContext(
        trace_id="a" * 32, span_id="b" * 16, is_remote=False, trace_state={"v": "1", "w": "x=y"}
    )
    parent = SpanContext(trace_id="a" * 32, span_id="c" * 16, is_remote=True, trace_state={})
    other = SpanContext(trace_id="d" * 32, span_id="e" * 16, is_remote=True, trace_state={"z": "2"})
    return Span(
        rollout_id=rollout.rollout_id,
        attempt_id=rollout.attempt.attempt_id,
        sequence_id=7,
        trace_id="a" * 32,
        span_id="b" * 16,
        parent_id="c" * 16,
        name="openai.chat.completion",
        status=TraceStatus(status_code="ERROR", description="too slow"),
        attributes={
            "text": "é",
            "flag": True,
            "count": 2**60 + 1,
            "share": 0.1,
            "whole": 3.0,
            "texts": ["a", "b"],
            "flags": [True, False],
            "counts": [1, 2],
            "shares": [0.5, 1.0],
            "none": [],
        },
        events=[Event(name="token", attributes={"i": 1}, timestamp=1_763_000_000.123457)],
        links=[Link(context=other, attributes={"why": "retry"}), Link(context=other)],
        start_time=1_763_000_000.1234567,
        end_time=1_763_000_001.7654321,
        context=context,
        parent=parent,
        resource=OtelResource(attributes={"service.name": "agent"}, schema_url="http://schema"),
        kind="SpanKind.CLIENT",
        instrumentation_scope="InstrumentationScope(my.scope, 1.2, , {})",
        mine={"nested": [1, {"x": None}]},
    )


async def test_every_field_of_a_span_comes_back(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    span = full_span(rollout)
    assert await store.add_span(span) == span
    [stored] = await store.query_spans(rollout.rollout_id)
    assert stored.model_dump() == span.model_dump()
    kinds = [type(value) for value in stored.attributes.values()]
    assert kinds[:5] == [str, bool, int, float, float]


async def test_what_others_read_is_plain_otlp(store: GrpcLightningStore, address: str) -> None:
    rollout = await store.start_rollout(1)
    await store.add_span(full_span(rollout))
    async with AsyncLightningStore(address) as client:
        [span] = [span async for span in client.query_spans(rollout.rollout_id)]
    assert (span.start_time_ns, span.end_time_ns) == (1763000000123456717, 1763000001765432119)
    assert span.otlp.kind == trace_pb2.Span.SPAN_KIND_CLIENT
    assert (span.scope.name, span.scope.version) == ("my.scope", "1.2")
    assert (span.otlp.trace_state, span.otlp.status.message) == ("v=1,w=x=y", "too slow")
    assert span.resource_attributes == {"service.name": "agent"}
    assert span.attributes["count"] == 2**60 + 1


async def test_no_float_of_a_time_is_lost(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    times = [random.Random(n).uniform(1e9, 2e9) for n in range(200)]
    spans = [
        a_span(rollout, start_time=t, end_time=None, sequence_id=n + 1) for n, t in enumerate(times)
    ]
    await store.add_many_spans(spans)
    stored = await store.query_spans(rollout.rollout_id)
    assert [span.start_time for span in stored] == times
    assert {span.end_time for span in stored} == {None}


async def test_a_span_starts_its_attempt_and_is_its_heartbeat(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    await store.add_span(a_span(rollout))
    running = await store.get_rollout_by_id(rollout.rollout_id)
    assert isinstance(running, AttemptedRollout)
    assert (running.status, running.attempt.status) == ("running", "running")
    assert running.attempt.last_heartbeat_time is not None


async def test_a_duplicate_is_none_and_changes_nothing(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    span = a_span(rollout, sequence_id=3)
    assert await store.add_span(span) == span
    changed = span.model_copy(update={"name": "other", "sequence_id": 9})
    assert await store.add_span(changed) is None
    assert list(await store.query_spans(rollout.rollout_id)) == [span]


async def test_many_spans_of_many_attempts_give_those_that_are_new(
    store: GrpcLightningStore,
) -> None:
    first, second = await store.start_rollout(1), await store.start_rollout(2)
    assert list(await store.add_many_spans([])) == []
    spans = [
        a_span(
            rollout, sequence_id=n, resource=OtelResource(attributes={"r": n % 2}, schema_url="")
        )
        for n in range(1, 7)
        for rollout in (first, second)
    ]
    assert list(await store.add_many_spans(spans)) == spans
    assert list(await store.add_many_spans(spans)) == []
    for rollout in (first, second):
        stored = await store.query_spans(rollout.rollout_id)
        assert list(stored) == [s for s in spans if s.rollout_id == rollout.rollout_id]
    old = spans[0].model_copy(update={"sequence_id": 50})
    new = a_span(first, sequence_id=51, resource=spans[0].resource)
    twice = new.model_copy(update={"name": "twice"})
    assert list(await store.add_many_spans([old, new, twice])) == [new]


async def test_large_batches_are_split(
    store: GrpcLightningStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_traces, "SPANS_AT_ONCE", 3)
    monkeypatch.setattr(_traces, "BYTES_AT_ONCE", 5000)
    rollout = await store.start_rollout(1)
    sizes = (1, 1, 1, 1, 3000, 3000, 9000, 1)
    spans = [
        a_span(rollout, sequence_id=n + 1, attributes={"x": "y" * size})
        for n, size in enumerate(sizes)
    ]
    assert list(await store.add_many_spans(spans)) == spans
    assert list(await store.query_spans(rollout.rollout_id)) == spans


async def test_a_span_without_a_number_gets_the_next(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    assert await store.get_next_span_sequence_id(rollout.rollout_id, "latest") == 1
    spans = [a_span(rollout, sequence_id=n) for n in (0, 20, -1, 0)]
    stored = await store.add_many_spans(spans)
    assert [span.sequence_id for span in stored] == [2, 20, 3, 4]
    assert list(await store.query_spans(rollout.rollout_id, sort_by=None)) == sorted(
        stored, key=lambda span: span.sequence_id
    )
    assert [span.sequence_id for span in spans] == [0, 20, -1, 0]
    assert await store.get_next_span_sequence_id(rollout.rollout_id, "latest") == 21


async def test_numbers_of_many_attempts_come_in_order(store: GrpcLightningStore) -> None:
    first, second = await store.start_rollout(1), await store.start_rollout(2)
    a, b = ((r.rollout_id, r.attempt.attempt_id) for r in (first, second))
    assert list(await store.get_many_span_sequence_ids([])) == []
    assert list(await store.get_many_span_sequence_ids([a, b, a, a, b])) == [1, 1, 2, 3, 2]
    assert await store.get_next_span_sequence_id(*a) == 4


async def test_spans_of_nobody_are_value_errors(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    known = (rollout.rollout_id, "at-nobody")
    span = a_span(rollout, sequence_id=1)
    for ids in (known, ("ro-nobody", rollout.attempt.attempt_id)):
        stray = span.model_copy(update=dict(zip(("rollout_id", "attempt_id"), ids, strict=True)))
        for call in (
            store.add_span(stray),
            store.add_many_spans([stray]),
            store.add_otel_span(*ids, recorded()),
            store.add_otel_span(*ids, recorded(), sequence_id=4),
            store.get_next_span_sequence_id(*ids),
            store.get_many_span_sequence_ids([ids]),
            store.query_spans(*ids),
        ):
            with pytest.raises(
                ValueError,
                match=r"^(Rollout ro-nobody not found|Attempt at-nobody not found for rollout ro-)",
            ):
                await call
    with pytest.raises(ValueError, match="span_id: 16 hex digits"):
        await store.add_span(a_span(rollout, span_id="span-1"))
    with pytest.raises(ValueError, match="trace_id: 32 hex digits"):
        await store.add_span(a_span(rollout, trace_id="0" * 32))
    for number in (1 << 63, -(1 << 63) - 1):
        with pytest.raises(ValueError, match="out of range"):
            await store.add_span(a_span(rollout, attributes={"n": number}))
    for time in (math.inf, -math.inf, math.nan, -1.0, 2e10):
        with pytest.raises(ValueError, match="seconds since 1970"):
            await store.add_span(a_span(rollout, start_time=time))
    assert list(await store.query_spans(rollout.rollout_id)) == []
    await store.add_span(a_span(rollout, parent_id=""))
    assert (await store.query_spans(rollout.rollout_id))[0].parent_id is None


def recorded() -> ReadableSpan:
    """Return a span as OpenTelemetry's SDK has recorded it."""
    provider = TracerProvider(resource=Resource({"service.name": "sdk"}, "http://of-resource"))
    tracer = provider.get_tracer("my.tracer", "3")
    with (
        tracer.start_as_current_span("outer") as outer,
        tracer.start_as_current_span(
            "inner",
            kind=SpanKind.CLIENT,
            attributes={"counts": [1, 2], "share": 0.5},
            links=[OtelLink(outer.get_span_context(), {"q": 1})],
        ) as span,
    ):
        span.add_event("token", {"i": 1})
        span.set_status(Status(StatusCode.ERROR, "why"))
    assert isinstance(span, ReadableSpan)
    return span


async def test_a_span_of_the_sdk_is_stored_to_the_nanosecond(
    store: GrpcLightningStore, address: str
) -> None:
    rollout = await store.start_rollout(1)
    ids = (rollout.rollout_id, rollout.attempt.attempt_id)
    readable = recorded()
    added = await store.add_otel_span(*ids, readable)
    assert added == Span.from_opentelemetry(readable, *ids, 1)
    [stored] = await store.query_spans(*ids)
    unlike = {
        name
        for name, value in added.model_dump().items()
        if stored.model_dump().get(name) != value and not isinstance(value, bool)
    }
    of_the_sdk = {"instrumentation_info", "sampler", "trace_config", "limits", "lock"}
    assert unlike <= {*of_the_sdk, "record_end_metrics", "attributes"}
    assert stored.attributes == {"counts": [1, 2], "share": 0.5}
    async with AsyncLightningStore(address) as client:
        [otlp] = [span async for span in client.query_spans(rollout.rollout_id)]
    assert (otlp.start_time_ns, otlp.end_time_ns) == (readable.start_time, readable.end_time)
    assert await store.add_otel_span(*ids, readable) is None
    assert await store.add_otel_span(*ids, recorded(), sequence_id=9) is not None
    assert [span.sequence_id for span in await store.query_spans(*ids)] == [1, 9]


async def test_spans_of_other_programs_can_be_read(store: GrpcLightningStore, address: str) -> None:
    """Their attributes may be maps, bytes and mixed lists, which agentlightning's model has not."""
    rollout = await store.start_rollout(1)
    mixed = ArrayValue(values=[AnyValue(int_value=1), AnyValue(string_value="a")])
    pair = KeyValueList(values=[KeyValue(key="k", value=AnyValue(bytes_value=b"\x01"))])
    values = {
        "map": AnyValue(kvlist_value=pair),
        "mixed": AnyValue(array_value=mixed),
        "bytes": AnyValue(bytes_value=b"\x00\xff"),
        "empty": AnyValue(),
    }
    otlp = trace_pb2.Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="foreign")
    otlp.attributes.extend(KeyValue(key=key, value=value) for key, value in values.items())
    batch = SpanBatch(rollout_id=rollout.rollout_id, attempt_id="latest", spans=[otlp])
    async with AsyncLightningStore(address) as client:
        await client.add_spans(batch)
    [span] = await store.query_spans(rollout.rollout_id)
    assert span.attributes == {
        "map": '{"k": "01"}',
        "mixed": '[1, "a"]',
        "bytes": "00ff",
        "empty": "",
    }
    assert (span.parent, span.parent_id, span.status.status_code) == (None, None, "UNSET")
    assert (span.start_time, span.end_time) == (None, None)


async def test_latest_and_all_attempts(store: GrpcLightningStore) -> None:
    rollout = await store.start_rollout(1)
    queued = await store.enqueue_rollout(2)
    await store.add_span(a_span(rollout, name="old"))
    again = await store.start_attempt(rollout.rollout_id)
    assert list(await store.query_spans(rollout.rollout_id, "latest")) == []
    await store.add_span(a_span(again, name="new"))

    async def names(attempt_id: str | None) -> list[str]:
        return [s.name for s in await store.query_spans(rollout.rollout_id, attempt_id)]

    assert await names("latest") == ["new"]
    assert await names(rollout.attempt.attempt_id) == ["old"]
    assert sorted(await names(None)) == ["new", "old"]
    none = await store.query_spans(queued.rollout_id, "latest", limit=4)
    assert (list(none), none.total, none.limit) == ([], 0, 4)


FILTERS = [
    ({"trace_id": "a" * 32}, [0, 1]),
    ({"trace_id_contains": "bb"}, [2, 3]),
    ({"span_id": "2" * 16}, [2]),
    ({"span_id_contains": "33"}, [3]),
    ({"parent_id": "1" * 16}, [2]),
    ({"parent_id_contains": "1"}, [2]),
    ({"parent_id": ""}, []),
    ({"parent_id_contains": ""}, [2]),
    ({"name": "plan"}, [0]),
    ({"name_contains": "plan"}, [0, 1]),
    ({"name_contains": "PLAN"}, []),
    ({"name_contains": ""}, [0, 1, 2, 3]),
    ({"name": "plan", "name_contains": "an"}, [0]),
    ({"name": "plan", "name_contains": "act"}, []),
    ({"name": "plan", "name_contains": "act", "filter_logic": "or"}, [0, 2]),
    ({"name": "plan", "trace_id": "b" * 32}, []),
    ({"name": "plan", "trace_id": "b" * 32, "filter_logic": "or"}, [0, 2, 3]),
    ({"filter_logic": "or"}, [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("filters", "expected"), FILTERS, ids=str)
async def test_filters_of_spans(
    store: GrpcLightningStore, filters: dict[str, Any], expected: list[int]
) -> None:
    rollout = await store.start_rollout(1)
    rows = [("a", "plan", None), ("a", "replan", None), ("b", "act", "1" * 16), ("b", "end", None)]
    spans = [
        a_span(
            rollout,
            trace_id=trace * 32,
            span_id=f"{n or 'f'}" * 16,
            name=name,
            parent_id=parent,
            sequence_id=n + 1,
        )
        for n, (trace, name, parent) in enumerate(rows)
    ]
    await store.add_many_spans(spans)
    found = await store.query_spans(rollout.rollout_id, **filters)
    assert [span.sequence_id - 1 for span in found] == expected
    assert found.total == len(expected)


@pytest.mark.parametrize("sort_order", ["asc", "desc"])
@pytest.mark.parametrize(
    "sort_by", ["sequence_id", "name", "parent_id", "start_time", "end_time", "attempt_id", None]
)
async def test_spans_come_sorted_page_by_page(
    store: GrpcLightningStore, sort_by: str | None, sort_order: str
) -> None:
    rollout = await store.start_rollout(1)
    rows = [("c", 3.0, None, None), ("a", 1.0, 9.0, "1" * 16), ("b", None, 5.0, None)]
    spans = [
        a_span(
            rollout,
            name=name,
            start_time=start,
            end_time=end,
            parent_id=parent,
            sequence_id=n + 1,
        )
        for n, (name, start, end, parent) in enumerate(rows)
    ]
    await store.add_many_spans(spans)
    by = {"sort_by": sort_by, "sort_order": sort_order}
    found = await store.query_spans(rollout.rollout_id, **by)
    expected = {"name": [2, 3, 1], "start_time": [2, 1, 3], "end_time": [3, 2, 1]}.get(
        str(sort_by), [1, 3, 2] if sort_by == "parent_id" else [1, 2, 3]
    )
    if sort_order == "desc" and sort_by == "parent_id":
        expected = [2, 1, 3]  # equal ones stay in their order
    elif sort_order == "desc" and sort_by not in ("attempt_id", None):
        expected = expected[::-1]
    assert [span.sequence_id for span in found] == expected
    page = await store.query_spans(rollout.rollout_id, **by, limit=1, offset=1)
    assert ([s.sequence_id for s in page], page.total) == (expected[1:2], 3)
    assert (page.limit, page.offset) == (1, 1)
    assert list(await store.query_spans(rollout.rollout_id, **by, limit=0)) == []
