"""What an exporter repairs, drops and says of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from lightningstore.client import SpanExporter
from lightningstore.client._exporter.losses import Losses
from lightningstore.v1.span_pb2 import IngestSpansResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Link, StatusCode

from .fakes import FakeServer
from .sinks import Sink, finished


def test_every_text_of_a_span_arrives_as_valid_utf8(
    make: Any, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    half, mended = "half \ud800.", "half \ufffd."
    tracer = TracerProvider(resource=Resource({"r": half})).get_tracer("scope " + half)
    other = tracer.start_span("link")
    span = tracer.start_span(half, links=[Link(other.get_span_context(), {half: half})])
    span.set_attribute(half, half)
    span.set_attribute("pair", "\ud834\udd1e")
    span.set_attribute("list", [half, "\udfff"])
    span.set_attribute("huge", 10**30)
    span.set_attribute("endless", 10**5000)
    span.add_event(half, {"e": half})
    span.set_status(StatusCode.ERROR, half)
    span.end()
    exporter = make()
    exporter.export([span])
    assert exporter.force_flush(30_000)
    [batch] = sink.batches
    [stored] = batch.spans
    values = {pair.key: pair.value for pair in stored.attributes}
    assert stored.name == stored.status.message == values[mended].string_value == mended
    assert values["pair"].string_value == "\U0001d11e"
    assert [v.string_value for v in values["list"].array_value.values] == [mended, "\ufffd"]
    assert values["huge"].string_value == str(10**30)
    assert int(values["endless"].string_value, 16) == 10**5000
    [event], [link] = stored.events, stored.links
    assert event.name == event.attributes[0].value.string_value == mended
    assert (link.attributes[0].key, link.attributes[0].value.string_value) == (mended, mended)
    assert batch.resource.attributes[0].value.string_value == mended
    assert batch.scope.name == "scope " + mended
    assert exporter.dropped_count == 0
    assert not caplog.records


def test_ids_of_an_exporter_are_valid_utf8() -> None:
    with pytest.raises(
        ValueError, match="attempt_id must be valid UTF-8: the character at index 2"
    ):
        SpanExporter("127.0.0.1:1", rollout_id="ro", attempt_id="at\ud800")


def test_spans_whose_ids_are_taken_are_told_and_no_other_is_sent_again(
    make: Any, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    streams: list[int] = []

    def ingest(requests: Any) -> IngestSpansResponse:
        streams.append(sum(len(request.batch.spans) for request in requests))
        answer = IngestSpansResponse()
        answer.result.accepted_count, answer.result.rejected_count = 1, 2
        answer.result.rejections.add(span_count=2, message="another span has the id")
        return answer

    server.on["IngestSpans"] = ingest
    exporter = make(delay=60.0)
    exporter.export(finished("a", "b", "c"))
    assert exporter.force_flush(30_000)
    assert streams == [3]
    assert exporter.dropped_count == 2
    assert "dropped 2 span(s): rejected by the server: another span has the id" in caplog.text


def test_refusals_without_a_reason_are_counted(
    make: Any, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def ingest(requests: Any) -> IngestSpansResponse:
        list(requests)
        return IngestSpansResponse(result={"rejected_count": 2})

    server.on["IngestSpans"] = ingest
    exporter = make()
    exporter.export(finished("a", "b"))
    assert exporter.force_flush(30_000)
    assert exporter.dropped_count == 2
    assert "without a reason" in caplog.text


def test_losses_of_a_kind_are_said_once_and_then_in_a_summary_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    losses = Losses(lambda: now[0])

    def said() -> list[str]:
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    losses.drop(1, "full", "the buffer (100 %)")
    losses.drop(2, "large", "too large")
    assert said() == [
        "dropped 1 span(s): the buffer (100 %); 1 dropped so far",
        "dropped 2 span(s): too large; 3 dropped so far",
    ]
    now[0] = 15.0
    losses.drop(3, "full", "the buffer")
    losses.drop(4, "full", "the buffer")
    losses.summarize()
    assert said() == []
    assert losses.until_summary() == 45.0
    now[0] = 60.0
    losses.summarize()
    assert said() == ["dropped 7 span(s): the buffer; 10 dropped so far"]
    assert losses.until_summary() is None
    losses.drop(5, "full", "the buffer")
    losses.summarize(everything=True)
    assert said() == ["dropped 5 span(s): the buffer; 15 dropped so far"]


def test_attributes_that_a_limit_has_cut_are_told(
    make: Any, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = make()
    exporter.export(finished("long", attributes={f"k{n}": n for n in range(130)}))
    assert exporter.force_flush(30_000)
    assert sink.names() == ["long"]
    assert "cut 1 span(s): 'long' has more attributes" in caplog.text


def test_spans_of_no_attempt_are_dropped_and_counted(
    make: Any, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = make(rollout_id="", attempt_id="")
    exporter.export(finished("a", "b"))
    assert exporter.force_flush(30_000)
    assert exporter.dropped_count == 2
    assert len(caplog.records) == 1
    assert "no rollout id and attempt id" in caplog.text
    assert not sink.batches


def test_beyond_the_buffer_spans_are_dropped_with_one_counted_warning(
    make: Any, server: FakeServer, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    exporter = make(max_buffer_bytes=2000)
    for number in range(100):
        exporter.export(finished(str(number)))
    dropped = exporter.dropped_count
    assert 0 < dropped < 100
    assert len([r for r in caplog.records if "buffer" in r.getMessage()]) == 1
    assert exporter.sent_count("ro-1", "at-1") == 100
    server.start()
    assert exporter.force_flush(30_000)
    # The oldest stay: they may be on their way already.
    assert sink.names() == [str(number) for number in range(100 - dropped)]
    exporter.export(finished("after"))
    assert exporter.force_flush(30_000)
    assert "after" in sink.names()


def test_a_span_over_the_limit_is_dropped_alone(
    make: Any, sink: Sink, caplog: pytest.LogCaptureFixture
) -> None:
    exporter = make(max_span_bytes=1000)
    exporter.export(finished("small", "also small"))
    exporter.export(finished("large", attributes={"text": "x" * 1000}))
    assert exporter.force_flush(30_000)
    assert sink.names() == ["small", "also small"]
    assert exporter.dropped_count == 1
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert "'large'" in record.getMessage()
