"""What users see of spans."""

from __future__ import annotations

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


class Span(View[trace_pb2.Span]):
    """An OpenTelemetry span of an attempt. The OTLP message, untouched, is `.otlp`."""

    _shown = ("sequence_id", "name", "rollout_id", "attempt_id")

    def __init__(
        self, message: trace_pb2.Span, batch: span_pb2.SpanBatch, sequence_id: int
    ) -> None:
        """Take the OTLP span and the batch that it came in, which are not copied."""
        super().__init__(message)
        self._batch = batch
        #: Its place within the attempt, from 1.
        self.sequence_id = sequence_id

    @property
    def otlp(self) -> trace_pb2.Span:
        """The OTLP message."""
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
        """Its name."""
        return self.message.name

    @property
    def trace_id(self) -> str:
        """32 lower-case hex digits."""
        return self.message.trace_id.hex()

    @property
    def span_id(self) -> str:
        """16 lower-case hex digits."""
        return self.message.span_id.hex()

    @property
    def parent_span_id(self) -> str:
        """16 lower-case hex digits; empty for a root."""
        return self.message.parent_span_id.hex()

    @property
    def start_time_ns(self) -> int:
        """Nanoseconds since 1970, by the clock of the process that made it."""
        return self.message.start_time_unix_nano

    @property
    def end_time_ns(self) -> int:
        """Nanoseconds since 1970, by the clock of the process that made it."""
        return self.message.end_time_unix_nano

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Attributes as Python values: lists for arrays, dicts for maps."""
        return {pair.key: from_any_value(pair.value) for pair in self.message.attributes}

    @property
    def resource(self) -> resource_pb2.Resource:
        """The OTLP resource that produced it; empty if none was given."""
        return self._batch.resource

    @property
    def scope(self) -> common_pb2.InstrumentationScope:
        """The OTLP instrumentation scope; empty if none was given."""
        return self._batch.scope

    @cached_property
    def resource_attributes(self) -> dict[str, Any]:
        """Attributes of its resource as Python values."""
        return {pair.key: from_any_value(pair.value) for pair in self._batch.resource.attributes}

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
        del batch.spans[:]  # the others are none of this one's business
        del batch.sequence_ids[:]
        return {"message": self.message, "_batch": batch, "sequence_id": self.sequence_id}


def spans_of(answer: span_pb2.QuerySpansResponse) -> list[Span]:
    """Return the spans of a message of the stream, in order."""
    return [
        Span(span, batch, sequence_id)
        for batch in answer.batches
        for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=False)
    ]


class Rejection(NamedTuple):
    """Why a batch of spans was refused."""

    #: Which message of the stream, from 0.
    message_index: int
    #: Name of an ErrorReason, "ERROR_REASON_ATTEMPT_NOT_FOUND" for instance.
    reason: str
    #: What was wrong, for people.
    message: str
    #: Number of spans refused with the batch.
    span_count: int


class IngestResult(NamedTuple):
    """What became of ingested spans. All that is counted here is durable."""

    #: Spans stored.
    accepted_count: int
    #: Spans that were stored before.
    duplicate_count: int
    #: Spans refused.
    rejected_count: int
    #: The first 10 refusals.
    rejections: list[Rejection]
    #: The attempts that their runners should stop.
    stops: list[Stop]
    #: The spans among those refused whose span_id the attempt has with other content.
    conflict_count: int = 0

    @classmethod
    def from_message(cls, message: span_pb2.IngestResult) -> IngestResult:
        """Read it from a message of the contract."""
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
    found = error_reason_pb2.ErrorReason.DESCRIPTOR.values_by_number.get(number)
    return str(number) if found is None else str(found.name)


@dataclass(frozen=True)
class SequenceIdRange:
    """A run of sequence ids that belongs to the caller."""

    rollout_id: str
    attempt_id: str
    #: The first number, from 1.
    first_sequence_id: int
    #: How many follow each other, the first included.
    count: int

    @property
    def numbers(self) -> range:
        """All of them."""
        return range(self.first_sequence_id, self.first_sequence_id + self.count)

    @classmethod
    def from_message(cls, message: span_pb2.SequenceIdRange) -> SequenceIdRange:
        """Read it from a message of the contract."""
        ref = message.attempt
        return cls(ref.rollout_id, ref.attempt_id, message.first_sequence_id, message.count)
