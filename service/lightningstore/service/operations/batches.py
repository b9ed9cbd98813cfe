"""Reads stored batches for queries as bytes, within a memory limit."""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError
from lightningstore.service.engine.budget import Budget
from lightningstore.service.engine.clock import Turn
from lightningstore.service.rules import pieces, spans, wire
from lightningstore.service.rules.errors import DataDamaged, StoreError
from lightningstore.service.rules.pieces import Cut
from lightningstore.service.rules.rows import SpanRow
from lightningstore.service.storage.base import Storage
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Bytes of stored batches that a query may cache. Beyond the first batch, other queries must have
#: left space for them.
CACHED_BYTES = 2 << 20
MAX_CACHED_BYTES = 32 << 20
#: Maximum bytes and number of the spans that are read from batches at a time.
WINDOW_BYTES = 1 << 20
WINDOW_SPANS = 1_000
#: Number of spans in the first window, because the reader may want no more.
FIRST_SPANS = 16

_SEQUENCE_IDS = SpanBatch.SEQUENCE_IDS_FIELD_NUMBER


class Place(NamedTuple):
    """One span of a stored batch: its sort key and its bytes."""

    sort: tuple[Any, ...]
    row: int
    place: int
    size: int


class Run(NamedTuple):
    """Consecutive spans that have everything else in common."""

    #: A serialised SpanBatch without spans and sequence ids.
    head: bytes
    #: Serialised fields of a SpanBatch.
    spans: list[bytes]
    sequence_ids: list[int]

    def slice(self, start: int, end: int) -> Run:
        """Return some of the spans."""
        return Run(self.head, self.spans[start:end], self.sequence_ids[start:end])

    def serialize(self) -> bytes:
        """Return the run as a SpanBatch."""
        numbers = b"".join(map(wire.varint, self.sequence_ids))
        return b"".join((self.head, *self.spans, wire.field(_SEQUENCE_IDS, numbers)))


class OpenRow(NamedTuple):
    """A parsed stored batch."""

    cut: Cut
    head: bytes
    sequence_ids: Sequence[int]

    @classmethod
    def of(cls, row: SpanRow) -> OpenRow:
        """Parse a row. Raises DataDamaged."""
        try:
            data = spans.batch_bytes(row)
            cut = pieces.cut(data, len(data), len(data))
            head = SpanBatch.FromString(cut.head)
        except (DecodeError, StoreError, ValueError, IndexError) as error:
            raise DataDamaged(f"batch of spans {row.key}: {error}") from error
        numbers: Sequence[int] = range(row.first_sequence_id, row.last_sequence_id + 1)
        if not row.contiguous:
            numbers = list(head.sequence_ids)
        del head.sequence_ids[:]
        return cls(cut, head.SerializeToString(deterministic=True), numbers)

    def run(self) -> Run:
        """Return all its spans, as stored."""
        cut = self.cut
        return Run(
            self.head,
            [bytes(view) for view in cut.views(range(len(cut.begins)))],
            list(self.sequence_ids),
        )


class Rows:
    """The stored batches of one query.

    Recently used ones are cached, others are loaded again when needed.
    """

    def __init__(
        self,
        storage: Storage,
        budget: Budget,
        rollout_key: int,
        attempt_key: int | None,
        through: int,
    ) -> None:
        """Select the batches, and the budget for caching them."""
        self._storage = storage
        self._budget = budget
        self._which = (rollout_key, attempt_key, through)
        self._kept: OrderedDict[int, OpenRow] = OrderedDict()
        self._bytes = 0
        self._room = CACHED_BYTES
        self.turn = Turn()

    def scan(self) -> AsyncIterator[SpanRow]:
        """Yield all rows, by first sequence id and key."""
        return self._storage.scan_spans(*self._which)

    def open(self, row: SpanRow) -> OpenRow:
        """Parse a row and cache it."""
        opened = self._kept.get(row.key)
        if opened is None:
            opened = self._kept[row.key] = OpenRow.of(row)
            self._bytes += len(opened.cut.data)
            while self._bytes > self._room and self._room < MAX_CACHED_BYTES:
                if not self._budget.try_take(CACHED_BYTES):
                    break
                self._room += CACHED_BYTES
            while self._bytes > self._room and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1].cut.data)
        return opened

    def close(self) -> None:
        """Release the space of the cache."""
        self._budget.give(self._room - CACHED_BYTES)
        self._room = CACHED_BYTES
        self._kept.clear()

    async def _get(self, key: int) -> OpenRow | None:
        """Return a row by its key, or None if it has been evicted."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        row = await self._storage.get_spans(self._which[0], key)
        return self.open(row) if row is not None else None

    async def places(
        self,
        row: SpanRow,
        keep: Callable[[Span], bool] | None,
        key: Callable[[Span], Any] | None = None,
    ) -> list[Place]:
        """Return the places of the spans of a row that match a filter, sorted by `key` if given."""
        found: list[Place] = []
        opened = self.open(row)
        cut, numbers = opened.cut, opened.sequence_ids
        for piece in cut.pieces():
            batch = SpanBatch.FromString(cut.spans(piece))
            for i, span in zip(piece, batch.spans, strict=True):
                if keep is None or keep(span):
                    own = (key(span),) if key is not None else ()
                    sort = (*own, numbers[i], span.start_time_unix_nano, span.span_id)
                    found.append(Place(sort, row.key, i, cut.ends[i] - cut.begins[i]))
            if self.turn.over():
                await self.turn.next()
        return found

    async def runs(self, places: Iterable[Place]) -> AsyncIterator[Run]:
        """Yield the spans of some places, in order, without those that were evicted since."""
        window: list[Place] = []
        size, most = 0, FIRST_SPANS
        for place in places:
            window.append(place)
            size += place.size
            if size >= WINDOW_BYTES or len(window) >= most:
                async for run in self._window(window):
                    yield run
                window, size, most = [], 0, min(2 * most, WINDOW_SPANS)
        if window:
            async for run in self._window(window):
                yield run

    async def _window(self, window: list[Place]) -> AsyncIterator[Run]:
        """Yield the spans of a window. Each row is loaded once, whatever the order of its spans."""
        by_row: dict[int, list[int]] = {}
        for at, place in enumerate(window):
            by_row.setdefault(place.row, []).append(at)
        taken: list[tuple[bytes, bytes, int] | None] = [None] * len(window)
        for key, members in by_row.items():
            opened = await self._get(key)
            if opened is not None:
                for at in members:
                    i = window[at].place
                    taken[at] = (opened.head, opened.cut.spans((i,)), opened.sequence_ids[i])
            if self.turn.over():
                await self.turn.next()
        run: Run | None = None
        for item in taken:
            if item is None:
                continue
            head, span, number = item
            if run is None or (run.head is not head and run.head != head):
                if run is not None:
                    yield run
                    if self.turn.over():
                        await self.turn.next()
                run = Run(head, [], [])
            run.spans.append(span)
            run.sequence_ids.append(number)
        if run is not None:
            yield run


class Sorted:
    """The places of a row by sequence id, start time and span id, in 40 bytes each."""

    def __init__(self, key: int, places: list[Place]) -> None:
        places.sort()
        self._key = key
        self._numbers = array("q", [place.sort[0] for place in places])
        self._times = array("Q", [place.sort[1] for place in places])
        self._ids = b"".join([place.sort[2] for place in places])
        self._places = array("L", [place.place for place in places])
        self._sizes = array("L", [place.size for place in places])

    def __iter__(self) -> Iterator[Place]:
        """Yield them in order."""
        ids = self._ids
        for i, number in enumerate(self._numbers):
            sort = (number, self._times[i], ids[8 * i : 8 * i + 8])
            yield Place(sort, self._key, self._places[i], self._sizes[i])
