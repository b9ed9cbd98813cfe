"""The unit of storage of spans: spans of one attempt with the same resource and scope. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from lightningstore.service.operations.span_rewards import Found, rewards_in
from lightningstore.service.rules import pieces, wire
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.pieces import Cut
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER

#: For spans whose id occurs elsewhere, by part and index: whether the content is the same.
Verdicts = dict[tuple[int, int], bool]


class Part(Protocol):
    """Spans of a batch that are stored as one row."""

    #: The ids of the spans, checked.
    span_ids: list[bytes]
    #: A sequence id for each span, 0 for the next number; or empty.
    given: Sequence[int]
    rollout_id: str
    attempt_id: str

    def span(self, index: int) -> bytes:
        """Return a span, serialised."""

    def row(self, attempt_id: str, indexes: Sequence[int] | None, numbers: Sequence[int]) -> bytes:
        """Return an IngestSpansRequest with some of the spans (None: all) and these numbers."""

    def rewards(self, row: bytes, indexes: Sequence[int] | None) -> Found:
        """Return the rewards in some of the spans (None: all), with positions among these spans.

        `row` is what `row` returned for them.
        """


class Parsed:
    """A batch that was parsed as a whole, with its serialised IngestSpansRequest if available."""

    __slots__ = ("_batch", "_data", "attempt_id", "given", "rollout_id", "span_ids")

    def __init__(self, batch: SpanBatch, data: bytes | None, span_ids: list[bytes]) -> None:
        self._batch = batch
        self._data = data
        self.span_ids = span_ids
        self.given: Sequence[int] = batch.sequence_ids
        self.rollout_id = batch.rollout_id
        self.attempt_id = batch.attempt_id

    def span(self, index: int) -> bytes:
        """Return a span, serialised."""
        return self._batch.spans[index].SerializeToString()

    def row(self, attempt_id: str, indexes: Sequence[int] | None, numbers: Sequence[int]) -> bytes:
        """Return an IngestSpansRequest with some of the spans."""
        batch = self._batch
        same = attempt_id == batch.attempt_id and not (self.given and 0 in self.given)
        if indexes is None and same:
            return self._data or wire.field(_BATCH, batch.SerializeToString())
        copy = evolve(batch, attempt_id=attempt_id)
        if indexes is not None:
            del copy.spans[:]
            copy.spans.extend(batch.spans[i] for i in indexes)
        del copy.sequence_ids[:]
        if self.given:
            copy.sequence_ids.extend(numbers)
        return wire.field(_BATCH, copy.SerializeToString())

    def rewards(self, row: bytes, indexes: Sequence[int] | None) -> Found:  # noqa: ARG002
        """Return the rewards in some of the spans."""
        return rewards_in(row, wire.frame(row, _BATCH) or 0)


class FromPiece:
    """A piece of a large batch that is never parsed as a whole."""

    __slots__ = (
        "_cut",
        "_found",
        "_head",
        "_indexes",
        "attempt_id",
        "given",
        "rollout_id",
        "span_ids",
    )

    def __init__(
        self,
        cut: Cut,
        head: SpanBatch,
        indexes: range,
        span_ids: list[bytes],
        given: Sequence[int],
        found: Found,
    ) -> None:
        """Create a piece from the batch without its spans, the indexes of the spans, and the rewards in them."""
        self._found = found
        self._cut = cut
        self._head = head
        self._indexes = indexes
        self.span_ids = span_ids
        self.given = given
        self.rollout_id = head.rollout_id
        self.attempt_id = head.attempt_id

    def span(self, index: int) -> bytes:
        """Return a span, serialised."""
        return _payload(self._cut.spans((self._indexes[index],)))

    def row(self, attempt_id: str, indexes: Sequence[int] | None, numbers: Sequence[int]) -> bytes:
        """Return an IngestSpansRequest with some of the spans."""
        head = evolve(self._head, attempt_id=attempt_id, sequence_ids=None)
        if self.given:
            head.sequence_ids.extend(numbers)
        chosen = self._indexes if indexes is None else [self._indexes[i] for i in indexes]
        views = self._cut.views(chosen)
        rest = head.SerializeToString()
        size = sum(map(len, views)) + len(rest)
        # Copied once, because this is done for all rows of a message without a pause.
        return b"".join((wire.header(_BATCH, size), *views, rest))

    def rewards(self, row: bytes, indexes: Sequence[int] | None) -> Found:  # noqa: ARG002
        """Return the rewards in some of the spans."""
        if indexes is None or not self._found:
            return self._found
        positions = {index: position for position, index in enumerate(indexes)}
        return [(positions[index], reward) for index, reward in self._found if index in positions]


def compare_parts(
    known: set[bytes], parts: Sequence[Part], verdicts: Verdicts
) -> dict[bytes, list[tuple[int, int]]]:
    """Compare the spans without a verdict with earlier spans of the same id.

    Returns the places of the spans whose ids are stored, by id; their verdicts are still missing.
    """
    seen: dict[bytes, tuple[int, int]] = {}
    asked: dict[bytes, list[tuple[int, int]]] = {}
    for p, part in enumerate(parts):
        for i, span_id in enumerate(part.span_ids):
            if (p, i) in verdicts:
                continue
            if span_id in known:
                asked.setdefault(span_id, []).append((p, i))
            elif span_id in seen:
                first = seen[span_id]
                verdicts[p, i] = is_same(part.span(i), parts[first[0]].span(first[1]))
            else:
                seen[span_id] = (p, i)
    return asked


def is_same(one: bytes, other: bytes) -> bool:
    """Return whether two serialised spans have the same content."""
    if one == other:
        return True
    canonical = [
        Span.FromString(data).SerializeToString(deterministic=True) for data in (one, other)
    ]
    return canonical[0] == canonical[1]


def stored_spans(data: bytes, span_ids: bytes, wanted: set[bytes]) -> dict[bytes, bytes]:
    """Return the spans of a stored row whose ids are in `wanted`, serialised, by span id."""
    start = wire.frame(data, _BATCH)
    batch = data[start:]
    found = pieces.cut(batch, len(batch), len(batch))
    spans: dict[bytes, bytes] = {}
    for i in range(len(found.begins)):
        span_id = span_ids[8 * i : 8 * i + 8]
        if span_id in wanted:
            spans[span_id] = _payload(found.spans((i,)))
    return spans


def _payload(field: bytes) -> bytes:
    _, _, start, end = next(wire.fields(field, 0, len(field)))
    return field[start:end]
