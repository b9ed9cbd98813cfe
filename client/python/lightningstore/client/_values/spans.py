"""Spans, and the results of storing them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values.any_value import from_any_value
from lightningstore.client._values.attempts import Stop
from lightningstore.client._values.view import View
from lightningstore.v1 import error_reason_pb2, span_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.resource.v1 import resource_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


class SpanStatus(NamedTuple):
    """How the operation of a span ended, by its own account.

    Attributes:
        code: "unset", "ok" or "error"; the number of a code that this client does not know.
        message: Why it failed; empty if nothing was recorded.
    """

    code: str
    message: str


class SpanEvent(NamedTuple):
    """Something that happened during a span.

    Attributes:
        name: Name of the event.
        time_ns: Nanoseconds since 1970; 0 if there is no time.
        attributes: Attributes as Python values.
    """

    name: str
    time_ns: int
    attributes: dict[str, Any]


class SpanLink(NamedTuple):
    """A connection to another span, possibly of another trace.

    Attributes:
        trace_id: 32 lower-case hex digits.
        span_id: 16 lower-case hex digits.
        attributes: Attributes as Python values.
    """

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


class SpanException(NamedTuple):
    """An exception that a span recorded. A part that was not recorded is empty.

    Attributes:
        type: Name of its class.
        message: Its message.
        stack_trace: Its stack trace, as text of several lines.
        time_ns: Nanoseconds since 1970; 0 if there is no time.
    """

    type: str
    message: str
    stack_trace: str
    time_ns: int


_STATUS_WORDS = {
    trace_pb2.Status.STATUS_CODE_UNSET: "unset",
    trace_pb2.Status.STATUS_CODE_OK: "ok",
    trace_pb2.Status.STATUS_CODE_ERROR: "error",
}


def _event(message: trace_pb2.Span.Event) -> SpanEvent:
    return SpanEvent(message.name, message.time_unix_nano, _plain(message.attributes))


def _link(message: trace_pb2.Span.Link) -> SpanLink:
    return SpanLink(message.trace_id.hex(), message.span_id.hex(), _plain(message.attributes))


def _exception(event: SpanEvent) -> SpanException:
    kind, message, stack = (
        str(event.attributes.get(f"exception.{part}") or "")
        for part in ("type", "message", "stacktrace")
    )
    return SpanException(kind, message, stack, event.time_ns)


def _plain(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, Any]:
    return {pair.key: from_any_value(pair.value) for pair in pairs}


class Span(View[trace_pb2.Span]):
    """An OpenTelemetry span of an attempt. A view of messages, which are not copied.

    Args:
        message: The OTLP span.
        batch: The batch that contains the ids, resource and scope of the span.
        sequence_id: Position of the span within the attempt, from 1.

    Attributes:
        sequence_id: Position of the span within the attempt, from 1.
    """

    _shown = ("sequence_id", "name", "rollout_id", "attempt_id")

    def __init__(
        self, message: trace_pb2.Span, batch: span_pb2.SpanBatch, sequence_id: int
    ) -> None:
        super().__init__(message)
        self._batch = batch
        self.sequence_id = sequence_id

    @property
    def otlp(self) -> trace_pb2.Span:
        """The OTLP span, as it was received."""
        return self.message

    @property
    def rollout_id(self) -> str:
        """Id of the rollout."""
        return self._batch.rollout_id

    @property
    def attempt_id(self) -> str:
        """Id of the attempt."""
        return self._batch.attempt_id

    @property
    def name(self) -> str:
        """Name of the span."""
        return self.message.name

    @property
    def trace_id(self) -> str:
        """Id of the trace: 32 lower-case hex digits."""
        return self.message.trace_id.hex()

    @property
    def span_id(self) -> str:
        """Id of the span: 16 lower-case hex digits."""
        return self.message.span_id.hex()

    @property
    def parent_span_id(self) -> str:
        """Id of the parent span: 16 lower-case hex digits. Empty for a root span."""
        return self.message.parent_span_id.hex()

    @property
    def start_time_ns(self) -> int:
        """Start in nanoseconds since 1970, by the clock of the process that created the span."""
        return self.message.start_time_unix_nano

    @property
    def end_time_ns(self) -> int:
        """End in nanoseconds since 1970, by the clock of the process that created the span."""
        return self.message.end_time_unix_nano

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the span as Python values: lists for arrays, dicts for maps."""
        return _plain(self.message.attributes)

    @property
    def status(self) -> SpanStatus:
        """Whether the operation failed, and why: the word "unset", "ok" or "error", and a message."""
        status = self.message.status
        word = _STATUS_WORDS.get(status.code, str(status.code))
        return SpanStatus(word, status.message)

    @cached_property
    def events(self) -> list[SpanEvent]:
        """What happened during the span, in the order in which it was recorded."""
        return list(map(_event, self.message.events))

    @cached_property
    def links(self) -> list[SpanLink]:
        """Other spans that it is connected with."""
        return list(map(_link, self.message.links))

    @property
    def exceptions(self) -> list[SpanException]:
        """The exceptions among its events, with their stack traces."""
        return [_exception(event) for event in self.events if event.name == "exception"]

    @property
    def resource(self) -> resource_pb2.Resource:
        """The OTLP resource that produced the span. Empty: none was sent."""
        return self._batch.resource

    @property
    def scope(self) -> common_pb2.InstrumentationScope:
        """The OTLP instrumentation scope. Empty: none was sent."""
        return self._batch.scope

    @cached_property
    def resource_attributes(self) -> dict[str, Any]:
        """Attributes of the OTLP resource as Python values."""
        return _plain(self._batch.resource.attributes)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Span):
            return NotImplemented
        return (
            self.message == other.message
            and self.sequence_id == other.sequence_id
            and (self.rollout_id, self.attempt_id) == (other.rollout_id, other.attempt_id)
        )

    __hash__ = None

    def __getstate__(self) -> dict[str, Any]:
        batch = span_pb2.SpanBatch()
        batch.CopyFrom(self._batch)
        del batch.spans[:]  # pickles contain this span only
        del batch.sequence_ids[:]
        return {"message": self.message, "_batch": batch, "sequence_id": self.sequence_id}


def spans_of(answer: span_pb2.QuerySpansResponse) -> list[Span]:
    """Return the spans of a response, in order."""
    return [
        Span(span, batch, sequence_id)
        for batch in answer.batches
        for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=False)
    ]


class Rejection(NamedTuple):
    """Why a batch of spans was rejected.

    Attributes:
        message_index: Index of the message in the stream, from 0.
        reason: Name of an ErrorReason of the contract, such as "ERROR_REASON_ATTEMPT_NOT_FOUND".
        message: What is wrong, for people.
        span_count: Number of rejected spans of the batch.
    """

    message_index: int
    reason: str
    message: str
    span_count: int


class IngestResult(NamedTuple):
    """The result of storing spans. Everything that is counted is durable.

    Attributes:
        accepted_count: Number of stored spans.
        duplicate_count: Number of spans that had been stored before.
        rejected_count: Number of rejected spans.
        rejections: The first 10 rejections.
        stops: The attempts that their runners should stop.
        conflict_count: Number of rejected spans whose span_id the attempt has with other content.
    """

    accepted_count: int
    duplicate_count: int
    rejected_count: int
    rejections: list[Rejection]
    stops: list[Stop]
    conflict_count: int = 0

    @classmethod
    def from_message(cls, message: span_pb2.IngestResult) -> IngestResult:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The result.
        """
        return cls(
            message.accepted_count,
            message.duplicate_count,
            message.rejected_count,
            [
                Rejection(r.message_index, _reason(r.reason), r.message, r.span_count)
                for r in message.rejections
            ],
            [Stop.from_message(stop) for stop in message.stops],
            message.conflict_count,
        )


def _reason(number: int) -> str:
    reason = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(number)
    return str(number) if reason is None else str(reason.name)


@dataclass(frozen=True)
class SequenceIdRange:
    """A range of sequence ids that is reserved for the caller.

    Args:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.
        first_sequence_id: First sequence id of the range, at least 1.
        count: Number of sequence ids in the range.
    """

    rollout_id: str
    attempt_id: str
    first_sequence_id: int
    count: int

    @property
    def numbers(self) -> range:
        """The sequence ids of the range."""
        return range(self.first_sequence_id, self.first_sequence_id + self.count)

    @classmethod
    def from_message(cls, message: span_pb2.SequenceIdRange) -> SequenceIdRange:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The range.
        """
        ref = message.attempt
        return cls(ref.rollout_id, ref.attempt_id, message.first_sequence_id, message.count)
