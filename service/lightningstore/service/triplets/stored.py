"""Batches of spans whose attributes stay serialised until they are read.

A trace with token ids consists largely of arrays of numbers. Each number is a message of its own, and building it takes
longer than all that is done with it.
"""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.twins import twin
from lightningstore.service.triplets.tokens import ARRAYS
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: A SpanBatch whose spans have bytes as the values of their attributes. This package takes its spans as any others.
StoredBatch = twin("stored", (SpanBatch, "spans"), (Span, "attributes"), (KeyValue, "value"))


def array_bytes(span: Any) -> int:
    """Return the size of the attributes of a stored span that are arrays of token ids, in bytes."""
    return sum(len(pair.value) for pair in span.attributes if pair.key in ARRAYS)
