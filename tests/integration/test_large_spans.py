"""Large messages of spans: refused by their counts, stored whole or not at all, never in one go.

A turn is what the event loop does between two looks at everybody else; its length is CPU time, so that other
processes do not count. The bounds are twice to five times what was measured.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
import resource
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.engine.budget import Budget
from lightningstore.service.http import otlp_json
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import handlers, otlp
from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import BatchTooLarge, Busy, FieldInvalid
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec
from lightningstore.v1.span_pb2 import QuerySpansRequest, QuerySpansResponse, SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans

from tests.calls import Calls
from tests.namespaced import elsewhere

pytestmark = pytest.mark.asyncio
MIB = 1 << 20
LONGEST_TURN = 0.15


@pytest_asyncio.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    service = await open_store(Config(backend=request.param, db=tmp_path / "large.db"))
    yield service
    await service.close()


async def start(store: Store) -> tuple[str, str]:
    request = StartRolloutRequest(rollout=RolloutSpec(input_json=b"1"))
    rollout = (await Calls(store).start_rollout(request)).rollout
    return rollout.rollout_id, rollout.latest_attempt.attempt_id


def text(key: str, value: str) -> KeyValue:
    return KeyValue(key=key, value=AnyValue(string_value=value))


def span(attributes: bytes = b"") -> bytes:
    ids = b"\x0a\x10" + os.urandom(16) + b"\x12\x08" + os.urandom(8)
    return wire.field(2, ids + attributes)


def head(own: tuple[str, str]) -> bytes:
    return SpanBatch(rollout_id=own[0], attempt_id=own[1]).SerializeToString()


def export_of(own: tuple[str, str], spans: bytes) -> bytes:
    attributes = [text(otlp.ROLLOUT_ID, own[0]), text(otlp.ATTEMPT_ID, own[1])]
    group = ResourceSpans(resource=Resource(attributes=attributes)).SerializeToString()
    return wire.field(1, group + wire.field(2, spans))


async def longest_turn(call: Callable[[], Awaitable[Any]]) -> tuple[Any, float, int]:
    """Return what a call returns or raises, its longest turn, and the number of its turns."""
    longest, turns, over = 0.0, 0, False
    gc.collect()

    async def watch() -> None:
        nonlocal longest, turns
        began = time.thread_time()
        while not over:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, turns, began = max(longest, now - began), turns + 1, now

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    try:
        answer: Any = await call()
    except Exception as error:
        answer = error
    over = True
    await watching
    return answer, longest, turns


async def ingest(store: Store, *messages: bytes) -> Any:
    async def requests() -> AsyncIterator[bytes]:
        for message in messages:
            yield message

    return await handlers._ingest(store)(requests())


async def stored(store: Store, rollout_id: str) -> list[int]:
    numbers: list[int] = []
    async for data in Calls(store).query_spans(QuerySpansRequest(rollout_id=rollout_id)):
        if data is not None:
            for batch in QuerySpansResponse.FromString(data).batches:
                numbers.extend(batch.sequence_ids)
    return numbers


@pytest.mark.parametrize("way", ["export", "add", "ingest"])
async def test_empty_spans_are_refused_by_their_number(store: Store, way: str) -> None:
    own, empty = await start(store), b"\x12\x00" * (15 * MIB)
    exported, added = export_of(own, empty), wire.field(1, head(own) + empty)
    calls: dict[str, Callable[[], Awaitable[Any]]] = {
        "export": lambda: otlp.export(store, exported, (), elsewhere(store)),
        "add": lambda: handlers._add_spans(store.ingest.add_spans, store)(added),
        "ingest": lambda: ingest(store, added),
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    answer, longest, _ = await longest_turn(calls[way])
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    assert isinstance(answer, BatchTooLarge)
    assert "50000" in answer.message
    assert longest < LONGEST_TURN
    assert grown < 200, f"{grown} MiB"  # they would take 2.5 GB
    assert await stored(store, own[0]) == []


async def test_as_many_spans_as_allowed_are_stored_in_slices(store: Store) -> None:
    own = await start(store)
    data = wire.field(1, head(own) + b"".join(span() for _ in range(50_000)))
    answer, longest, turns = await longest_turn(
        lambda: handlers._add_spans(store.ingest.add_spans, store)(data)
    )
    assert answer.result.accepted_count == 50_000
    assert turns >= 3
    assert longest < LONGEST_TURN
    answer, longest, turns = await longest_turn(
        lambda: handlers._add_spans(store.ingest.add_spans, store)(data)
    )
    assert (answer.result.accepted_count, answer.result.duplicate_count) == (0, 50_000)
    assert await stored(store, own[0]) == list(range(1, 50_001))


async def test_spans_of_unknown_rollouts_are_refused_in_slices(store: Store) -> None:
    own = await start(store)
    unknown = b"".join(
        span(
            wire.field(9, text(otlp.ROLLOUT_ID, f"ro-{i}").SerializeToString())
            + wire.field(9, text(otlp.ATTEMPT_ID, "at-1").SerializeToString())
        )
        for i in range(10_000)
    )
    data = export_of(own, unknown)
    answer, longest, turns = await longest_turn(
        lambda: otlp.export(store, data, (), elsewhere(store))
    )
    assert answer.partial_success.rejected_spans == 10_000
    assert turns >= 3
    assert longest < LONGEST_TURN
    assert store.ingest.refused_spans.total == {"rollout_not_found": 10_000}


async def test_spans_without_ids_are_refused_in_slices(store: Store) -> None:
    data = export_of(await start(store), b"\x12\x00" * 40_000)
    answer, longest, _ = await longest_turn(lambda: otlp.export(store, data, (), elsewhere(store)))
    assert answer.partial_success.rejected_spans == 40_000
    assert longest < LONGEST_TURN


async def test_large_batch_with_one_bad_span_is_stored_not_at_all(store: Store) -> None:
    own = await start(store)
    spans = [span() for _ in range(4_000)]
    spans[3_999] = wire.field(2, b"\x0a\x10" + os.urandom(16))
    data = wire.field(1, head(own) + b"".join(spans))
    with pytest.raises(FieldInvalid, match=r"batch\.spans\[3999\]\.span_id"):
        await handlers._add_spans(store.ingest.add_spans, store)(data)
    assert await stored(store, own[0]) == []
    result = (await ingest(store, data, wire.field(1, head(own) + span()))).result
    assert (result.accepted_count, result.rejected_count) == (1, 4_000)


async def test_sequence_ids_of_a_large_batch_are_kept(store: Store) -> None:
    own = await start(store)
    numbers = SpanBatch(sequence_ids=[2 * i + 1 for i in range(4_500)]).SerializeToString()
    data = wire.field(1, head(own) + b"".join(span() for _ in range(4_500)) + numbers)
    await handlers._add_spans(store.ingest.add_spans, store)(data)
    assert await stored(store, own[0]) == list(range(1, 9_001, 2))


async def test_repeat_of_a_large_request_gets_the_first_answer(store: Store) -> None:
    own = await start(store)
    body = head(own) + b"".join(span() for _ in range(3_000))
    data = wire.field(1, body) + wire.field(2, b"id")
    add = handlers._add_spans(store.ingest.add_spans, store)
    first = await add(data)
    assert first.result.accepted_count == 3_000
    assert await add(data) == first


async def test_small_bodies_of_many_spans_are_refused_over_http(store: Store) -> None:
    body = b'{"resourceSpans":[{"scopeSpans":[{"spans":[' + b",".join([b"{}"] * 300_000) + b"]}]}]}"
    assert len(gzip.compress(body)) < 4_096
    with pytest.raises(BatchTooLarge):
        otlp_json.scopes(body, store.engine.limits)
    with pytest.raises(BatchTooLarge):
        otlp_json.scopes(b'{"x":[' + b"0," * 500_000 + b"0]}", store.engine.limits)


async def test_commas_in_texts_are_no_values(store: Store) -> None:
    value = {"stringValue": "," * 500_000}
    body = (
        '{"resourceSpans":[{"scopeSpans":[{"spans":[{"attributes":[{"key":"k","value":'
        + str(value).replace("'", '"')
        + "}]}]}]}]}"
    )
    found, refused = otlp_json.scopes(body.encode(), store.engine.limits)
    assert [scope.span_count for scope in found] == [1]
    assert not refused


async def test_streams_together_hold_no_more_than_what_may_wait_for_the_disk(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = await start(store)
    message = wire.field(1, head(own) + span(wire.field(5, b"x" * 300_000)))
    monkeypatch.setattr(store.ingest, "intake", Budget(450_000, "spans"))
    disk = asyncio.Event()

    async def room() -> None:
        await disk.wait()

    monkeypatch.setattr(store.engine.committer, "room", room)
    calls = [asyncio.create_task(ingest(store, message)) for _ in range(5)]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    while len(waiting) > 2:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert store.ingest.intake.used == len(message)
    assert store.ingest.intake.waiting_bytes == len(message)
    disk.set()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results].count(Busy) == 3
    assert store.ingest.intake.used == store.ingest.intake.waiting_bytes == 0
