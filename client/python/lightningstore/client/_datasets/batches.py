"""Batches of spans, split to the size of messages."""

from __future__ import annotations

from collections.abc import Iterator

from lightningstore.v1 import span_pb2

#: Maximum bytes of spans in one message of an import.
MESSAGE_BYTES = 4 << 20


def split_batch(batch: span_pb2.SpanBatch) -> Iterator[span_pb2.SpanBatch]:
    """Split a batch that is too large for a message.

    Args:
        batch: A batch of spans.

    Yields:
        The batch, or parts of it of about 4 MiB.
    """
    if batch.ByteSize() <= MESSAGE_BYTES:
        yield batch
        return
    start = size = 0
    for end, span in enumerate(batch.spans):
        added = span.ByteSize()
        if size and size + added > MESSAGE_BYTES:
            yield slice_of(batch, start, end)
            start, size = end, 0
        size += added
    yield slice_of(batch, start, len(batch.spans))


def slice_of(batch: span_pb2.SpanBatch, start: int, end: int) -> span_pb2.SpanBatch:
    """Return the spans of a batch from index `start` up to `end` as a batch of their own."""
    part = batch_like(batch)
    part.spans.extend(batch.spans[start:end])
    part.sequence_ids.extend(batch.sequence_ids[start:end])
    return part


def batch_like(batch: span_pb2.SpanBatch) -> span_pb2.SpanBatch:
    """Copy a batch without its spans.

    Args:
        batch: A batch of spans.

    Returns:
        A batch with the same attempt, resource and scope.
    """
    part = span_pb2.SpanBatch(
        rollout_id=batch.rollout_id,
        attempt_id=batch.attempt_id,
        schema_url=batch.schema_url,
        resource_schema_url=batch.resource_schema_url,
    )
    if batch.HasField("resource"):
        part.resource.CopyFrom(batch.resource)
    if batch.HasField("scope"):
        part.scope.CopyFrom(batch.scope)
    return part
