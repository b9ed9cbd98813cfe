"""OpenTelemetry's own SDK and exporter, unchanged, export to the store."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from lightningstore.service.rules.errors import Busy
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
    SpanExportResult,
)

from tests.contract.conftest import World
from tests.contract.helpers import claim, names, query

pytestmark = pytest.mark.asyncio

ROLLOUT, ATTEMPT = "agentlightning.rollout_id", "agentlightning.attempt_id"
SEQUENCE = "agentlightning.span_sequence_id"


class Recorder(SpanExporter):
    """Passes on to the real exporter and keeps what it answered."""

    def __init__(self, exporter: OTLPSpanExporter) -> None:
        self.exporter = exporter
        self.results: list[SpanExportResult] = []

    def export(self, spans: Any) -> SpanExportResult:
        self.results.append(self.exporter.export(spans))
        return self.results[-1]

    def shutdown(self) -> None:
        self.exporter.shutdown()


async def export(
    world: World,
    work: Callable[[Any], None],
    resource: dict[str, Any] | None = None,
    *,
    batched: bool = True,
    **options: Any,
) -> list[SpanExportResult]:
    """Run `work` with a tracer in a thread; return what the exporter reported."""
    assert world.server is not None
    address = world.server.address

    def run() -> list[SpanExportResult]:
        exporter = Recorder(OTLPSpanExporter(endpoint=address, insecure=True, **options))
        provider = TracerProvider(resource=Resource.create(resource or {}), shutdown_on_exit=False)
        kind = BatchSpanProcessor if batched else SimpleSpanProcessor
        provider.add_span_processor(kind(exporter))
        work(provider.get_tracer("lib", "1.2"))
        provider.force_flush()
        provider.shutdown()
        return exporter.results

    return await asyncio.to_thread(run)


def spans(*texts: str, **attributes: Any) -> Callable[[Any], None]:
    """Return work that makes these spans, one after another."""

    def work(tracer: Any) -> None:
        for text in texts:
            with tracer.start_as_current_span(text) as span:
                for key, value in attributes.items():
                    span.set_attribute(key, value)

    return work


async def ids(world: World) -> tuple[str, str]:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


def owner(names: tuple[str, str]) -> dict[str, str]:
    return {ROLLOUT: names[0], ATTEMPT: names[1]}


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
@pytest.mark.parametrize("batched", [True, False])
async def test_resource_attributes_name_the_attempt(
    world: World, compression: grpc.Compression, *, batched: bool
) -> None:
    own = await ids(world)
    results = await export(
        world,
        spans("a", "b", "c"),
        {"service.name": "agent", **owner(own)},
        batched=batched,
        compression=compression,
    )
    assert set(results) == {SpanExportResult.SUCCESS}
    stored = await query(world, own[0])
    assert [span.name for span in stored] == ["a", "b", "c"]
    assert [span.sequence_id for span in stored] == [1, 2, 3]
    assert {span.attempt_id for span in stored} == {own[1]}
    assert stored[0].resource_attributes["service.name"] == "agent"
    assert (stored[0].scope.name, stored[0].scope.version) == ("lib", "1.2")
    rollout = await world.store.get_rollout(own[0])
    assert (rollout.status, rollout.latest_attempt.span_count) == ("running", 3)


async def test_span_comes_back_with_all_that_the_sdk_recorded(world: World) -> None:
    own = await ids(world)
    seen: list[ReadableSpan] = []

    def work(tracer: Any) -> None:
        with tracer.start_as_current_span("outer") as outer:
            with tracer.start_as_current_span("inner") as inner:
                inner.set_attribute("list", [1, 2])
                inner.add_event("happened", {"n": 1.5})
                inner.record_exception(ValueError("no"))
            seen.extend((outer, inner))

    await export(world, work, owner(own))
    outer, inner = seen
    by_name = {span.name: span for span in await query(world, own[0])}
    found = by_name["inner"]
    assert found.trace_id == f"{inner.context.trace_id:032x}"
    assert found.span_id == f"{inner.context.span_id:016x}"
    assert found.parent_span_id == by_name["outer"].span_id
    assert (found.start_time_ns, found.end_time_ns) == (inner.start_time, inner.end_time)
    assert found.attributes == {"list": [1, 2]}
    assert [event.name for event in found.otlp.events] == ["happened", "exception"]


async def test_span_attributes_name_the_attempt(world: World) -> None:
    one, two = await ids(world), await ids(world)

    def work(tracer: Any) -> None:
        spans("a", **owner(one))(tracer)
        spans("b", **owner(two))(tracer)
        spans("c", **owner(one))(tracer)

    await export(world, work)
    assert await names(world, one[0]) == ["a", "c"]
    assert await names(world, two[0]) == ["b"]


async def test_span_attributes_win_over_those_of_the_resource(world: World) -> None:
    one, two = await ids(world), await ids(world)

    def work(tracer: Any) -> None:
        spans("of the resource")(tracer)
        spans("its own", **owner(two))(tracer)

    await export(world, work, owner(one))
    assert await names(world, one[0]) == ["of the resource"]
    assert await names(world, two[0]) == ["its own"]


@pytest.mark.parametrize(
    "keys", [(ROLLOUT, ATTEMPT), ("x-lightning-rollout-id", "x-lightning-attempt-id")]
)
async def test_metadata_names_the_attempt(world: World, keys: tuple[str, str]) -> None:
    own = await ids(world)
    await export(world, spans("a"), headers=tuple(zip(keys, own, strict=True)))
    assert await names(world, own[0]) == ["a"]


async def test_attributes_win_over_metadata(world: World) -> None:
    one, two, three = await ids(world), await ids(world), await ids(world)

    def work(tracer: Any) -> None:
        spans("resource")(tracer)
        spans("span", **owner(three))(tracer)

    headers = (("x-lightning-rollout-id", one[0]), ("x-lightning-attempt-id", one[1]))
    await export(world, work, owner(two), headers=headers)
    assert await names(world, one[0]) == []
    assert await names(world, two[0]) == ["resource"]
    assert await names(world, three[0]) == ["span"]


async def test_sequence_ids_order_the_spans(world: World) -> None:
    own = await ids(world)

    def work(tracer: Any) -> None:
        for number in (30, 10, 20):
            spans(str(number), **{SEQUENCE: number})(tracer)

    await export(world, work, owner(own))
    assert [(s.name, s.sequence_id) for s in await query(world, own[0])] == [
        ("10", 10),
        ("20", 20),
        ("30", 30),
    ]


async def test_latest_works_as_attempt(world: World) -> None:
    own = await ids(world)
    await export(world, spans("a"), owner((own[0], "latest")))
    (stored,) = await query(world, own[0])
    assert stored.attempt_id == own[1]


async def test_thousands_of_spans_arrive_once_each(world: World) -> None:
    own = await ids(world)
    texts = [f"s{n}" for n in range(2000)]
    await export(world, spans(*texts), owner(own), compression=grpc.Compression.Gzip)
    stored = await names(world, own[0])
    assert sorted(stored) == sorted(texts)


async def test_spans_without_attempt_do_not_fail_the_exporter(world: World) -> None:
    own = await ids(world)

    def work(tracer: Any) -> None:
        spans("lost")(tracer)
        spans("kept", **owner(own))(tracer)

    assert await export(world, work) == [SpanExportResult.SUCCESS]
    assert await names(world, own[0]) == ["kept"]


async def test_exporter_waits_as_long_as_busy_says_and_loses_nothing(world: World) -> None:
    own = await ids(world)
    assert world.service is not None
    committer = world.service.engine.committer
    admit, tries = committer.admit, []
    busy = Busy("the disk does not keep up")
    busy.retry_delay = 2.0  # longer than the exporter's own, which is 1 s ± 20 %

    def refuse_once() -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise busy
        admit()

    committer.admit = refuse_once
    results = await export(world, spans("a", "b"), owner(own))
    assert results == [SpanExportResult.SUCCESS]
    assert await names(world, own[0]) == ["a", "b"]
    assert len(tries) == 2
    assert tries[1] - tries[0] > 1.9
