"""QuerySpans over batches whose sequence ids interleave: in order, lazily, within memory, in slices."""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from lightningstore.service.operations import batches as rows
from lightningstore.service.operations import spans as query_spans
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import Busy
from lightningstore.service.rules.rows import SpanRow
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    QuerySpansRequest,
    QuerySpansResponse,
    SpanBatch,
    TextMatch,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import Calls
from tests.integration.test_large_spans import longest_turn, start, store, text

__all__ = ["store"]  # the fixture

pytestmark = pytest.mark.asyncio
LONGEST_TURN = 0.1


async def add(store: Store, own: tuple[str, str], numbers: list[int], resource: str = "") -> None:
    batch = SpanBatch(rollout_id=own[0], attempt_id=own[1], sequence_ids=numbers)
    for number in numbers:
        ids = {"trace_id": os.urandom(16), "span_id": os.urandom(8)}
        name = f"{number} {'even' if number % 2 == 0 else 'odd'}"
        batch.spans.append(Span(**ids, name=name, start_time_unix_nano=10**6 - number))
    if resource:
        batch.resource.attributes.append(text("r", resource))
    await Calls(store).add_spans(AddSpansRequest(batch=batch))


async def query(store: Store, own: tuple[str, str], **options: Any) -> list[tuple[int, str, int]]:
    """Return sequence id, name and size of the resource of each span."""
    found = []
    async for data in Calls(store).query_spans(QuerySpansRequest(rollout_id=own[0], **options)):
        for batch in QuerySpansResponse.FromString(data or b"").batches:
            assert len(batch.spans) == len(batch.sequence_ids)
            assert (batch.rollout_id, batch.attempt_id) == own
            size = batch.resource.ByteSize()
            found += [
                (n, s.name, size) for n, s in zip(batch.sequence_ids, batch.spans, strict=True)
            ]
    return found


@pytest.mark.parametrize("cached", [1, rows.CACHED_BYTES])
async def test_any_mixture_of_batches_comes_in_order(
    store: Store, cached: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "CACHED_BYTES", cached)
    monkeypatch.setattr(rows, "MAX_CACHED_BYTES", cached)
    monkeypatch.setattr(rows, "WINDOW_SPANS", 7)
    chance, own = random.Random(1), await start(store)
    numbers = chance.sample(range(1, 2_000), 600)
    for at in range(0, 600, 40):
        part = numbers[at : at + 40]
        await add(store, own, sorted(part) if at % 80 else part, "r" * (at // 100))
    expected = sorted(numbers)
    assert [n for n, *_ in await query(store, own)] == expected
    for offset, limit in ((0, 1), (5, 20), (590, 20), (0, 599), (600, 5)):
        found = await query(store, own, offset=offset, limit=limit)
        assert [n for n, *_ in found] == expected[offset : offset + limit]
    even = [n for n in expected if n % 2 == 0]
    assert [n for n, *_ in await query(store, own, name=TextMatch(contains="even"))] == even
    for order in ("start_time", "sequence_id desc"):
        assert [n for n, *_ in await query(store, own, order_by=order)] == expected[::-1]
        found = await query(store, own, order_by=order, offset=3, limit=9)
        assert [n for n, *_ in found] == expected[::-1][3:12]


async def test_spans_of_two_resources_alternate_in_slices(store: Store) -> None:
    own = await start(store)
    await add(store, own, list(range(1, 4_001, 2)), "a" * 50_000)
    await add(store, own, list(range(2, 4_001, 2)), "b" * 60_000)
    found, longest, turns = await longest_turn(lambda: query(store, own, limit=300))
    assert [n for n, *_ in found] == list(range(1, 301))
    assert {size > 55_000 for n, _, size in found if n % 2} == {False}
    assert {size > 55_000 for n, _, size in found if not n % 2} == {True}
    assert turns >= 2
    assert longest < LONGEST_TURN


async def test_batches_with_one_resource_are_merged_into_one(store: Store) -> None:
    own = await start(store)
    await add(store, own, list(range(1, 401, 2)), "r")
    await add(store, own, list(range(2, 401, 2)), "r")
    batches = 0
    async for data in Calls(store).query_spans(QuerySpansRequest(rollout_id=own[0])):
        batches += len(QuerySpansResponse.FromString(data or b"").batches)
    assert batches < 10  # not one a span


async def test_query_with_a_limit_reads_no_more_than_it_needs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await start(store)
    await add(store, own, [1, 100_000])
    for at in range(2, 60):
        await add(store, own, [at, 50_000 + at], "r" * 30_000)
    opened = []
    take_apart = rows.OpenRow.of

    def note(row: SpanRow) -> rows.OpenRow:
        opened.append(row.key)
        return take_apart(row)

    monkeypatch.setattr(rows.OpenRow, "of", note)
    assert [n for n, *_ in await query(store, own, limit=2)] == [1, 2]
    assert len(opened) < 5


async def test_answers_that_nobody_reads_have_a_limit(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_spans, "HOLD_SECONDS", 0.01)
    own = await start(store)
    await add(store, own, [1])
    most = store.engine.limits.unread_bytes // query_spans.HELD_BYTES
    readers = [Calls(store).query_spans(QuerySpansRequest(rollout_id=own[0])) for _ in range(most)]
    for reader in readers:
        assert await anext(reader) is None
        assert await anext(reader)
    with pytest.raises(Busy, match="answers being read"):
        await query(store, own)
    await readers.pop().aclose()
    assert len(await query(store, own)) == 1
    for reader in readers:
        await reader.aclose()
    assert store.spans.unread.used == 0
