"""Calls that are under way while a commit fails, or while what they read changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.operations.ingest import Tally
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import otlp
from lightningstore.service.rules.errors import ReadFailed, StorageFailed
from lightningstore.service.server import server as service
from lightningstore.service.server.config import Config
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, span_pb2
from lightningstore.v1.completion_pb2 import (
    WaitForRolloutsRequest,
    WaitForRolloutsResponse,
    WatchRolloutsRequest,
    WatchRolloutsResponse,
)
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.calls import Calls
from tests.contract.helpers import batch
from tests.namespaced import elsewhere

pytestmark = pytest.mark.asyncio

Open = Callable[[], Any]


@pytest_asyncio.fixture
async def open_store(tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the store of the test; a second time: closes it, and opens it again."""
    opened: list[Any] = []

    async def open_it() -> Store:
        if opened:
            await opened.pop().close()
        opened.append(await service.open_store(Config(backend="sqlite", db=tmp_path / "store.db")))
        return opened[0]

    yield open_it
    await opened[0].close()


def fail_next_commit(store: Store, when: asyncio.Event | None = None) -> asyncio.Event:
    """Have the next commit fail, not before `when`; returns what is set once the store has recovered."""
    commit = store.engine.storage.commit
    recovered = asyncio.Event()

    async def failing(_changes: object) -> None:
        store.engine.storage.commit = commit
        if when is not None:
            await when.wait()
        raise StorageFailed("disk on fire")

    def usable(yes: bool) -> None:
        if yes:
            # What follows comes when the committer has taken up its work again.
            asyncio.get_running_loop().call_soon(recovered.set)

    store.engine.storage.commit = failing
    store.engine.watch_usability(usable)
    return recovered


async def start(store: Store) -> tuple[str, str]:
    """Start a rollout; returns its id and that of its attempt."""
    spec = rollout_pb2.RolloutSpec(input_json=b"1")
    answer = await Calls(store).start_rollout(claim_pb2.StartRolloutRequest(rollout=spec))
    return answer.rollout.rollout_id, answer.rollout.latest_attempt.attempt_id


def outcome(ids: tuple[str, str]) -> attempt_pb2.UpdateAttemptRequest:
    """Return the report that an attempt has succeeded."""
    attempt = attempt_pb2.Attempt(
        rollout_id=ids[0], attempt_id=ids[1], status=attempt_pb2.ATTEMPT_STATUS_SUCCEEDED
    )
    return attempt_pb2.UpdateAttemptRequest(attempt=attempt)


def export_of(owners: Iterable[tuple[str, str]]) -> ExportTraceServiceRequest:
    """Return an export of one span for each attempt."""
    request = ExportTraceServiceRequest()
    for owner in owners:
        spans = request.resource_spans.add()
        for key, value in zip((otlp.ROLLOUT_ID, otlp.ATTEMPT_ID), owner, strict=True):
            spans.resource.attributes.add(key=key).value.string_value = value
        spans.scope_spans.add().spans.extend(batch(*owner, "s").spans)
    return request


async def names(store: Store, rollout_id: str) -> list[str]:
    """Return the names of the spans that are stored."""
    request = span_pb2.QuerySpansRequest(rollout_id=rollout_id)
    answers = [part async for part in Calls(store).query_spans(request) if part is not None]
    found = [span_pb2.QuerySpansResponse.FromString(part) for part in answers]
    return [span.name for answer in found for b in answer.batches for span in b.spans]


async def test_stream_of_spans_is_not_answered_when_a_commit_failed_meanwhile(
    open_store: Open,
) -> None:
    store = await open_store()
    ids = await start(store)
    sent = [span_pb2.IngestSpansRequest(batch=batch(*ids, name)) for name in "abc"]

    async def around_a_failure() -> AsyncIterator[span_pb2.IngestSpansRequest]:
        yield sent[0]
        await store.engine.barrier()
        recovered = fail_next_commit(store)
        yield sent[1]
        await recovered.wait()
        yield sent[2]

    async def again() -> AsyncIterator[span_pb2.IngestSpansRequest]:
        for request in sent:
            yield request

    with pytest.raises(StorageFailed):
        await Calls(store).ingest_spans(around_a_failure())
    assert "b" not in await names(store, ids[0])
    result = (await Calls(store).ingest_spans(again())).result
    assert (result.accepted_count, result.duplicate_count) == (1, 2)
    assert sorted(await names(store, ids[0])) == ["a", "b", "c"]


async def test_import_is_not_answered_when_a_commit_failed_meanwhile(open_store: Open) -> None:
    store = await open_store()

    def finished(rollout_id: str) -> ImportRolloutsRequest:
        request = ImportRolloutsRequest()
        request.rollout.MergeFrom(
            rollout_pb2.Rollout(
                rollout_id=rollout_id,
                input_json=b"1",
                status=rollout_pb2.ROLLOUT_STATUS_CANCELLED,
                start_time={"seconds": 1},
                end_time={"seconds": 2},
            )
        )
        return request

    async def around_a_failure() -> AsyncIterator[ImportRolloutsRequest]:
        recovered = fail_next_commit(store)
        yield finished("a")
        await recovered.wait()
        yield finished("b")

    async def again() -> AsyncIterator[ImportRolloutsRequest]:
        for name in "ab":
            yield finished(name)

    with pytest.raises(StorageFailed):
        await Calls(store).import_rollouts(around_a_failure())
    answer = await Calls(store).import_rollouts(again())
    assert (answer.imported_count, answer.known_count) == (1, 1)


async def test_export_is_not_answered_when_a_commit_failed_meanwhile(open_store: Open) -> None:
    store = await open_store()
    owners = [await start(store) for _ in range(2)]
    store = await open_store()  # span ids are on disk alone: the export waits for them
    request = export_of(owners)
    second_read = asyncio.Event()
    recovered = fail_next_commit(store, second_read)
    read, reads = store.engine.storage.span_ids, 0

    async def slow(*keys: int) -> list[bytes]:
        nonlocal reads
        reads += 1
        if reads == 2:
            second_read.set()
            await recovered.wait()
        return await read(*keys)

    store.engine.storage.span_ids = slow
    data = request.SerializeToString()
    with pytest.raises(StorageFailed):
        await otlp.export(store, data, (), elsewhere(store))
    assert await names(store, owners[0][0]) == []
    await otlp.export(store, data, (), elsewhere(store))
    for rollout_id, _ in owners:
        assert await names(store, rollout_id) == ["s"]


async def test_repeat_that_reads_the_span_ids_slowly_adds_nothing_twice(open_store: Open) -> None:
    store = await open_store()
    ids = await start(store)
    await store.ingest.add_batch(batch(*ids, "a"), None, Tally())
    store = await open_store()  # span ids are on disk alone
    read, reads, slow_read = store.engine.storage.span_ids, 0, asyncio.Event()

    async def slow(*keys: int) -> list[bytes]:
        nonlocal reads
        reads += 1
        own, found = reads, await read(*keys)
        if own == 2:
            await slow_read.wait()
        return found

    store.engine.storage.span_ids = slow
    request = span_pb2.AddSpansRequest(batch=batch(*ids, "x"))
    calls = [asyncio.create_task(Calls(store).add_spans(request)) for _ in range(2)]
    await calls[0]
    await Calls(store).update_attempt(outcome(ids))
    slow_read.set()
    results = [(await call).result for call in calls]
    assert sorted(result.accepted_count for result in results) == [0, 1]
    assert await names(store, ids[0]) == ["a", "x"]


@pytest.mark.parametrize("call", ["IngestSpans", "Export"])
async def test_failed_read_of_span_ids_fails_the_call_and_rejects_no_span(
    open_store: Open, call: str
) -> None:
    store = await open_store()
    ids = await start(store)
    store = await open_store()  # span ids are on disk alone
    read = store.engine.storage.span_ids

    async def failing(*_keys: int) -> list[bytes]:
        raise ReadFailed("disk I/O error")

    async def requests() -> AsyncIterator[span_pb2.IngestSpansRequest]:
        yield span_pb2.IngestSpansRequest(batch=batch(*ids, "s"))

    async def send() -> None:
        if call == "IngestSpans":
            await store.ingest.ingest_spans(requests())
        else:
            await otlp.export(store, export_of([ids]).SerializeToString(), (), elsewhere(store))

    store.engine.storage.span_ids = failing
    with pytest.raises(ReadFailed):
        await send()
    store.engine.storage.span_ids = read
    await send()
    assert await names(store, ids[0]) == ["s"]


def while_committing(store: Store, act: Callable[[], Any]) -> None:
    """Have something done during the next commit, too late to be part of it."""
    commit = store.engine.storage.commit

    async def slow(changes: object) -> None:
        store.engine.storage.commit = commit
        await commit(changes)
        await act()

    store.engine.storage.commit = slow


async def test_wait_tells_of_a_finish_whose_rollout_changes_meanwhile(open_store: Open) -> None:
    store = await open_store()
    ids = await start(store)
    await Calls(store).update_attempt(outcome(ids))
    while_committing(store, lambda: store.ingest.add_batch(batch(*ids, "late"), None, Tally()))
    enqueuing = asyncio.create_task(start(store))
    await asyncio.sleep(0)  # it is being committed
    request = WaitForRolloutsRequest(rollout_ids=[ids[0]])

    async def wait() -> list[str]:
        parts = [part async for part in Calls(store).wait_for_rollouts(request) if part]
        answers = [WaitForRolloutsResponse.FromString(part) for part in parts]
        return [rollout.rollout_id for answer in answers for rollout in answer.rollouts]

    assert await asyncio.wait_for(wait(), 10) == [ids[0]]
    await enqueuing


async def test_watch_does_not_begin_after_a_finish_that_may_be_lost(open_store: Open) -> None:
    store = await open_store()
    ids = await start(store)
    reports: list[asyncio.Task[Any]] = []

    async def finish() -> None:
        fail_next_commit(store)
        reports.append(asyncio.create_task(Calls(store).update_attempt(outcome(ids))))
        await asyncio.sleep(0)

    while_committing(store, finish)
    other = asyncio.create_task(start(store))
    await asyncio.sleep(0)
    watching = Calls(store).watch_rollouts(WatchRolloutsRequest())
    told = [await anext(watching) for _ in range(2)][1]
    assert told is not None
    assert WatchRolloutsResponse.FromString(told).through_completion_number == 0
    await other
    with pytest.raises(StorageFailed):
        await reports[0]
    await watching.aclose()
