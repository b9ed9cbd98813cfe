"""Cases: batches of spans."""

from __future__ import annotations

import os

import pytest
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, large
from lightningstore.service.storage.testing.records import (
    ANY_KEY,
    attempt,
    batches,
    items,
    packed,
    put,
    rollout,
    spans,
)
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE


class SpanCases(Cases):
    """Scans of batches, span ids, and eviction."""

    async def test_batch_comes_back_as_it_was(self, storage: Storage) -> None:
        rows = [spans(1, 5, 9), spans(2, 1, 3, contiguous=False, data=os.urandom(5000))]
        await put(storage, rollout(1), *rows)
        scanned = await items(storage.scan_spans(1, None, ANY_KEY))
        # A scan may leave out the span ids: who needs them asks for them.
        assert [row._replace(span_ids=b"") for row in scanned] == [
            row._replace(span_ids=b"") for row in reversed(rows)
        ]

    async def test_batches_go_by_sequence_id_and_key(self, storage: Storage) -> None:
        await put(storage, spans(3, 10, 12), spans(2, 1, 3), spans(4, 5, 5, attempt_key=2))
        await put(storage, spans(6, 2, 2), spans(7, 1, 1, rollout_key=2), spans(5, 1, 3))
        await put(storage, spans(1, 1, 1))
        assert await batches(storage) == [1, 2, 5, 6, 4, 3]
        assert await batches(storage, 1, 1) == [1, 2, 5, 6, 3]
        assert await batches(storage, 1, 2) == [4]
        assert await batches(storage, 2) == [7]
        assert await batches(storage, 3) == []
        assert await batches(storage, 1, 3) == []

    async def test_batches_above_a_key_are_left_out(self, storage: Storage) -> None:
        await put(storage, *(spans(k, 10 - k, 10 - k, attempt_key=k % 2) for k in range(1, 9)))
        assert await batches(storage, max_key=5) == [5, 4, 3, 2, 1]
        assert await batches(storage, 1, 1, 5) == [5, 3, 1]
        assert await batches(storage, max_key=0) == []

    async def test_one_batch_is_found_by_its_key(self, storage: Storage) -> None:
        await put(storage, *(spans(k, k, k) for k in range(1, 9)))
        row = await storage.get_spans(1, 3)
        assert row is not None
        assert row._replace(span_ids=b"") == spans(3, 3, 3)._replace(span_ids=b"")
        assert await storage.get_spans(1, 99) is None

    async def test_many_batches_are_all_scanned(self, storage: Storage) -> None:
        await put(storage, *(spans(k, k, k) for k in range(1, 301)))
        await put(storage, *(spans(k, k, k, attempt_key=2) for k in range(301, 310)))
        assert await batches(storage) == list(range(1, 310))
        assert await batches(storage, 1, 1) == list(range(1, 301))

    async def test_many_batches_with_one_sequence_id_are_all_scanned(
        self, storage: Storage
    ) -> None:
        await put(storage, *(spans(k, 7, 7) for k in range(100, 0, -1)))
        assert await batches(storage) == list(range(1, 101))

    @large
    async def test_large_batches_are_all_scanned(self, storage: Storage) -> None:
        rows = [spans(k, k, k, data=bytes([k]) * (k * 300_000)) for k in range(1, 13)]
        await put(storage, *rows)
        scanned = await items(storage.scan_spans(1, None, ANY_KEY))
        assert [row.data for row in scanned] == [row.data for row in rows]

    async def test_batches_are_found_without_their_rollout(self, storage: Storage) -> None:
        """A batch does not depend on the row of its rollout."""
        await put(storage, spans(1, 1, 1, rollout_key=77, attempt_key=88))
        assert await batches(storage, 77, 88) == [1]

    async def test_span_ids_of_an_attempt_go_by_key(self, storage: Storage) -> None:
        await put(storage, rollout(1), attempt(1, 1), spans(1, 5, 9), spans(2, 1, 3))
        await put(storage, spans(3, 1, 2, attempt_key=2), spans(4, 1, 2, rollout_key=2))
        await put(storage, spans(5, 2, 2))
        assert await storage.span_ids(1, 1) == [
            (1, packed([5, 6, 7, 8, 9])),
            (2, packed([1, 2, 3])),
            (5, packed([2])),
        ]
        assert await storage.span_ids(1, 2) == [(3, packed([1, 2]))]
        assert await storage.span_ids(2, 1) == [(4, packed([1, 2]))]
        assert await storage.span_ids(1, 3) == []

    async def test_evicted_spans_are_gone(self, storage: Storage) -> None:
        if storage.durability != DURABILITY_NONE:
            pytest.skip("spans are evicted only from a storage that declares DURABILITY_NONE")
        await put(storage, rollout(1), spans(1, 1, 1), spans(2, 1, 1, rollout_key=2))
        await put(storage, evicted=[1, 3])
        assert await batches(storage) == []
        assert await storage.span_ids(1, 1) == []
        assert await storage.get_spans(1, 1) is None
        assert await batches(storage, 2) == [2]
        await put(storage, spans(3, 2, 2))
        assert await batches(storage) == [3]
        assert len(await storage.load(["r1"])) == 1
