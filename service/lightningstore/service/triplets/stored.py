"""Batches of spans whose attributes stay serialised until they are read.

A trace with token ids consists largely of arrays of numbers. Each number is a message of its own, and building it takes
longer than all that is done with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightningstore.service.rules.twins import twin
from lightningstore.service.triplets.tokens import ARRAYS
from lightningstore.service.triplets.values import SerializedAttributes
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: A SpanBatch whose spans have bytes as the values of their attributes.
StoredBatch = twin("stored", (SpanBatch, "spans"), (Span, "attributes"), (KeyValue, "value"))


class StoredSpan:
    """A span of a StoredBatch, with the fields that this package reads. The package takes it as any other span.

    Reading a field of a message takes as long as ten reads of a Python object, and a span is read in several steps.
    """

    __slots__ = (
        "_attributes",
        "_pairs",
        "end_time_unix_nano",
        "events",
        "name",
        "parent_span_id",
        "part_count",
        "span_id",
        "start_time_unix_nano",
    )

    def __init__(self, span: Any) -> None:
        self.span_id: bytes = span.span_id
        self.parent_span_id: bytes = span.parent_span_id
        self.name: str = span.name
        self.start_time_unix_nano: int = span.start_time_unix_nano
        self.end_time_unix_nano: int = span.end_time_unix_nano
        self._pairs: Any = span.attributes
        self._attributes: SerializedAttributes | None = None
        self.events: Iterable[Any] = span.events or ()
        #: Number of its attributes and events.
        self.part_count = len(self._pairs) + len(span.events)

    @property
    def attributes(self) -> SerializedAttributes:
        """Its attributes by key. The first use takes them from the message, which may take long."""
        if self._attributes is None:
            self._attributes = SerializedAttributes({p.key: p.value for p in self._pairs})
            self._pairs = None
        return self._attributes

    def array_bytes(self) -> int:
        """Return the size of the attributes that are arrays of token ids, in bytes. Before these are read."""
        return sum(len(pair.value) for pair in self._pairs if pair.key in ARRAYS)
