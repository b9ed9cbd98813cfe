"""The exporter against a server that the test decides about, and a real one that crashes."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest
from lightningstore.client import LightningStore, SpanExporter, Stop, StopReason
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult

from .fakes import FakeServer, Fault, RealServer, rich, unavailable
from .sinks import Sink, finished


def test_spans_arrive_with_resource_and_scope(make: Any, sink: Sink) -> None:
    exporter = make()
    spans = finished("a", "b", attributes={"n": 1}, **{"service.name": "agent"})
    assert exporter.export(spans) is SpanExportResult.SUCCESS
    assert exporter.force_flush(30_000)
    [batch] = sink.batches
    assert (batch.rollout_id, batch.attempt_id) == ("ro-1", "at-1")
    assert [span.name for span in batch.spans] == ["a", "b"]
    assert batch.resource.attributes[0].value.string_value == "agent"
    assert (batch.scope.name, batch.scope.version) == ("scope", "1.0")
    assert batch.spans[0].span_id == spans[0].context.span_id.to_bytes(8, "big")
    assert not batch.sequence_ids


def test_the_attempt_is_the_spans_else_its_resources_else_the_exporters(
    make: Any, sink: Sink
) -> None:
    exporter = make()
    keys = ("agentlightning.rollout_id", "agentlightning.attempt_id")
    own = dict(zip(keys, ("ro-s", "at-s"), strict=True))
    resource = dict(zip(keys, ("ro-r", "at-r"), strict=True))
    exporter.export(finished("span", attributes=own, **resource))
    exporter.export(finished("resource", **resource))
    exporter.export(finished("given"))
    exporter.export(finished("half", attributes={keys[1]: "at-2"}))
    assert exporter.force_flush(30_000)
    filed = {s.name: (b.rollout_id, b.attempt_id) for b in sink.batches for s in b.spans}
    assert filed == {
        "span": ("ro-s", "at-s"),
        "resource": ("ro-r", "at-r"),
        "given": ("ro-1", "at-1"),
        "half": ("ro-1", "at-2"),
    }


def test_sequence_ids_of_the_caller_are_kept(make: Any, sink: Sink) -> None:
    exporter = make(delay=60.0)
    exporter.export(finished("a", attributes={"agentlightning.span_sequence_id": 7}))
    exporter.export(finished("b"))
    assert exporter.force_flush(30_000)
    assert [n for batch in sink.batches for n in batch.sequence_ids] in ([7], [7, 0])


def test_spans_of_an_attempt_keep_their_order(make: Any, sink: Sink) -> None:
    exporter = make(delay=60.0)
    tracer_a, tracer_b = (TracerProvider().get_tracer(name) for name in "ab")
    for number in range(6):
        span = (tracer_a, tracer_b)[number % 2].start_span(str(number))
        span.end()
        exporter.export([span])
    assert exporter.force_flush(30_000)
    assert sink.names() == list("012345")
    assert sink.streams == 1


def test_nothing_is_lost_while_the_server_is_away(
    make: Any, server: FakeServer, sink: Sink
) -> None:
    server.stop()
    exporter = make()
    names = [str(number) for number in range(200)]
    for name in names:
        exporter.export(finished(name))
    assert not exporter.force_flush(50)
    server.start()
    assert exporter.force_flush(30_000)
    assert sorted(sink.names(), key=int) == names
    assert exporter.dropped_count == 0


def test_spans_are_sent_again_when_the_answer_was_lost(
    make: Any, server: FakeServer, sink: Sink
) -> None:
    left = [2]

    def lossy(request_iterator: Any) -> Any:
        answer = sink(request_iterator)
        if left[0]:
            left[0] -= 1
            raise unavailable()
        return answer

    server.on["IngestSpans"] = lossy
    exporter = make()
    exporter.export(finished("a", "b"))
    assert exporter.force_flush(30_000)
    assert sink.streams == 3
    assert sorted(sink.names()) == ["a", "b"]


def test_an_agent_is_not_held_up_by_a_silent_server(make: Any, server: FakeServer) -> None:
    done = threading.Event()

    def silent(request_iterator: Any) -> Any:
        del request_iterator
        done.wait(50)
        raise unavailable()

    server.on["IngestSpans"] = silent
    exporter = make(max_buffer_bytes=10_000)
    for number in range(500):
        exporter.export(finished(str(number)))
    assert not exporter.force_flush(50)
    exporter.shutdown(50)
    assert exporter.dropped_count == 500
    assert not done.is_set()  # nothing waited for the answer
    done.set()


def test_what_is_over_the_message_limit_is_split(make: Any, sink: Sink) -> None:
    exporter = make(delay=60.0)
    for number in range(40):
        exporter.export(finished(str(number), attributes={"text": "x" * 100_000}))
    assert exporter.force_flush(30_000)
    assert len(sink.known) == 40
    assert len(sink.batches) >= 4
    assert max(batch.ByteSize() for batch in sink.batches) < 1_200_000


def test_a_bad_span_takes_no_other_along(make: Any, sink: Sink) -> None:
    sink.bad = {"bad"}
    exporter = make(delay=60.0)
    exporter.export(finished("a", "bad", "b", "bad", "c"))
    assert exporter.force_flush(30_000)
    assert sink.names() == ["a", "b", "c"]
    assert exporter.dropped_count == 2


def test_a_span_that_has_no_encoding_takes_no_other_along(make: Any, sink: Sink) -> None:
    exporter = make()
    bad = finished("good", "bad", "fine")
    bad[1]._start_time = -1  # no uint64
    exporter.export(bad)
    assert exporter.force_flush(30_000)
    assert sink.names() == ["good", "fine"]
    assert exporter.dropped_count == 1


def test_more_refusals_than_the_server_tells_of_are_sorted_out_too(make: Any, sink: Sink) -> None:
    sink.bad = {f"bad{n}" for n in range(30)}
    exporter = make(delay=60.0)
    for number in range(30):
        attempt = {"agentlightning.attempt_id": f"at-{number}"}
        exporter.export(finished(f"good{number}", f"bad{number}", attributes=attempt))
    assert exporter.force_flush(30_000)
    assert sorted(sink.names()) == sorted(f"good{number}" for number in range(30))
    assert exporter.dropped_count == 30


def test_spans_of_an_unknown_attempt_are_dropped_at_once(make: Any, sink: Sink) -> None:
    sink.unknown = {"at-x"}
    exporter = make(delay=60.0)
    exporter.export(finished("a", "b", attributes={"agentlightning.attempt_id": "at-x"}))
    exporter.export(finished("c"))
    assert exporter.force_flush(30_000)
    assert sink.names() == ["c"]
    assert exporter.dropped_count == 2
    assert sink.streams == 1


def test_a_server_that_is_busy_is_waited_for(make: Any, server: FakeServer, sink: Sink) -> None:
    left = [2]

    def busy(request_iterator: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise Fault(*rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_BUSY", retry=0.01))
        return sink(request_iterator)

    server.on["IngestSpans"] = busy
    exporter = make()
    exporter.export(finished("a"))
    assert exporter.force_flush(30_000)
    assert sink.names() == ["a"]


def test_a_server_that_refuses_the_caller_ends_the_tries(
    make: Any, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(request_iterator: Any) -> Any:
        del request_iterator
        raise Fault(grpc.StatusCode.PERMISSION_DENIED, "not you")

    server.on["IngestSpans"] = refuse
    exporter = make()
    exporter.export(finished("a"))
    assert exporter.force_flush(30_000)
    assert exporter.dropped_count == 1
    assert "not you" in caplog.text


def test_stops_are_passed_on(make: Any, sink: Sink) -> None:
    heard: list[Stop] = []
    exporter = make(on_stop=heard.append)
    sink.stops = [{"attempt": {"rollout_id": "ro-1", "attempt_id": "at-1"}, "reason": 1}]
    exporter.export(finished("a"))
    assert exporter.force_flush(30_000)
    assert heard == [Stop("ro-1", "at-1", StopReason.ROLLOUT_CANCELLED)]


def test_a_stop_callback_that_fails_harms_nothing(make: Any, sink: Sink) -> None:
    def fail(stop: Stop) -> None:
        raise ValueError(stop)

    exporter = make(on_stop=fail)
    sink.stops = [{"attempt": {"rollout_id": "ro-1", "attempt_id": "at-1"}, "reason": 1}]
    for name in "ab":
        exporter.export(finished(name))
        assert exporter.force_flush(30_000)
    assert sink.names() == ["a", "b"]


def test_flush_does_not_wait_for_company_and_for_what_comes_after(make: Any, sink: Sink) -> None:
    exporter = make(delay=60.0)
    assert exporter.force_flush(0)
    exporter.export(finished("a"))
    assert exporter.force_flush(30_000)  # less than the delay
    exporter.export(finished("b"))
    assert sink.names() == ["a"]


def test_shutdown_sends_what_is_left(make: Any, sink: Sink) -> None:
    exporter = make(delay=60.0)
    exporter.export(finished("a"))
    exporter.shutdown()
    assert sink.names() == ["a"]
    assert exporter.dropped_count == 0
    assert exporter.export(finished("b")) is SpanExportResult.FAILURE
    exporter.shutdown()
    assert exporter.dropped_count == 1


def test_shutdown_without_a_server_ends_in_time_and_says_what_is_lost(
    make: Any, server: FakeServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.stop()
    exporter = make()
    exporter.export(finished("a", "b"))
    exporter.shutdown(200)  # it would wait for the server until pytest's own timeout ends it
    assert exporter.dropped_count == 2
    assert "2 span(s): not stored before" in caplog.text


def test_it_works_as_the_sdk_uses_it(make: Any, sink: Sink) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(make(delay=60.0)))
    with provider.get_tracer("t").start_as_current_span("outer") as outer:
        provider.get_tracer("t").start_span("inner").end()
    provider.shutdown()
    assert sink.names() == ["inner", "outer"]
    assert outer is not None


def test_a_client_given_stays_open(server: FakeServer, sink: Sink) -> None:
    with LightningStore(server.address) as store:
        exporter = SpanExporter(store, rollout_id="ro", attempt_id="at")
        exporter.export(finished("a"))
        exporter.shutdown()
        exporter = SpanExporter(store, rollout_id="ro", attempt_id="at")
        exporter.export(finished("b"))
        exporter.shutdown()
    assert sink.names() == ["a", "b"]


def test_nothing_is_lost_or_doubled_when_a_real_server_crashes(real: RealServer) -> None:
    with LightningStore(real.address) as store:
        attempt = store.start_rollout("x").attempt
        exporter = SpanExporter(
            real.address,
            rollout_id=attempt.rollout_id,
            attempt_id=attempt.attempt_id,
            delay=0.0,
        )
        names = [str(number) for number in range(600)]
        back = threading.Timer(0.0, lambda: None)
        for number, name in enumerate(names):
            exporter.export(finished(name))
            if number in (200, 400):
                if back.is_alive():
                    back.join()
                real.kill()
                back = threading.Timer(0.1, real.start)
                back.start()
        back.join()
        assert exporter.force_flush(30_000)
        stored = list(store.query_spans(attempt.rollout_id))
        assert [span.name for span in stored] == names
        assert [span.sequence_id for span in stored] == list(range(1, 601))
        update = store.update_attempt(
            attempt.rollout_id,
            attempt.attempt_id,
            sent_span_count=exporter.sent_count(attempt.rollout_id, attempt.attempt_id),
        )
        assert update.missing_span_count == 0
        exporter.shutdown()
