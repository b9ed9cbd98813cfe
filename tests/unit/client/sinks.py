"""What exporters send to, in tests."""

from __future__ import annotations

from typing import Any

from lightningstore.v1.span_pb2 import IngestSpansResponse
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider


class Sink:
    """Takes spans as a store would: each once, those of unknown attempts and bad ones refused."""

    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.streams = 0
        self.known: dict[tuple[str, str, bytes], Any] = {}
        self.bad: set[str] = set()
        self.unknown: set[str] = set()
        self.stops: list[dict[str, Any]] = []

    def __call__(self, request_iterator: Any) -> IngestSpansResponse:
        self.streams += 1
        answer = IngestSpansResponse()
        result = answer.result
        for index, request in enumerate(request_iterator):
            batch = request.batch
            self.batches.append(batch)
            reason = 0
            if batch.attempt_id in self.unknown:
                reason = 11
            elif any(span.name in self.bad for span in batch.spans):
                reason = 1
            if reason:
                result.rejected_count += len(batch.spans)
                if len(result.rejections) < 10:
                    result.rejections.add(
                        message_index=index, reason=reason, span_count=len(batch.spans)
                    )
                continue
            for span in batch.spans:
                key = (batch.rollout_id, batch.attempt_id, span.span_id)
                result.duplicate_count += key in self.known
                result.accepted_count += key not in self.known
                self.known[key] = span
        for stop in self.stops:
            result.stops.add(**stop)
        return answer

    def names(self) -> list[str]:
        return [span.name for span in self.known.values()]


def finished(*names: str, attributes: Any = None, **resource: str) -> list[ReadableSpan]:
    tracer = TracerProvider(resource=Resource(resource)).get_tracer("scope", "1.0")
    spans: list[ReadableSpan] = []
    for name in names:
        span = tracer.start_span(name, attributes=attributes)
        span.end()
        assert isinstance(span, ReadableSpan)
        spans.append(span)
    return spans
