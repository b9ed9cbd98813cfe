"""Reads that take long: what they return may be out of date by then, and must not overwrite what is newer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightningstore.service.engine import state as engine_state
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import (
    FieldInvalid,
    RolloutExists,
    RolloutNotFound,
    StorageFailed,
    StoreError,
)
from lightningstore.service.rules.limits import Retention
from lightningstore.service.rules.measures import NONE
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1 import attempt_pb2, claim_pb2, resources_pb2, rollout_pb2, span_pb2

from tests.calls import Calls
from tests.clock import ManualClock
from tests.contract.helpers import batch
from tests.storage.slow_reads import SlowReads

pytestmark = pytest.mark.asyncio

BACKENDS = pytest.mark.parametrize("backend", ["memory", "sqlite"])
ALL = Retention(finished_seconds=0.0)


@asynccontextmanager
async def store_in(folder: Path, backend: str) -> AsyncIterator[Store]:
    config = Config(backend=backend, db=folder / "s.db", durability="relaxed")
    service = await open_store(config, ManualClock())
    yield service
    await service.close()


async def evict(store: Store) -> None:
    """Have all finished rollouts leave memory."""
    await store.engine.barrier()
    before = engine_state.CACHED_ROLLOUTS
    engine_state.CACHED_ROLLOUTS = 0
    try:
        store.engine.live.state.trim(store.engine.committer.durable_through)
    finally:
        engine_state.CACHED_ROLLOUTS = before


async def enqueue(store: Store, rollout_id: str, input_json: bytes) -> Any:
    spec = rollout_pb2.RolloutSpec(rollout_id=rollout_id, input_json=input_json)
    request = rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
    return await Calls(store).enqueue_rollouts(request)


async def finished(store: Store, rollout_id: str, input_json: bytes = b"1") -> None:
    """Make a rollout with one attempt, which succeeds, and have it leave memory."""
    spec = rollout_pb2.RolloutSpec(rollout_id=rollout_id, input_json=input_json)
    await Calls(store).start_rollout(claim_pb2.StartRolloutRequest(rollout=spec))
    outcome = attempt_pb2.Attempt(rollout_id=rollout_id, attempt_id="latest", status=3)
    await Calls(store).update_attempt(attempt_pb2.UpdateAttemptRequest(attempt=outcome))
    await evict(store)


async def update(store: Store, **fields: Any) -> rollout_pb2.Rollout:
    request = rollout_pb2.UpdateRolloutRequest(rollout=rollout_pb2.Rollout(**fields))
    request.update_mask.paths.extend(name for name in fields if name != "rollout_id")
    answer: rollout_pb2.Rollout = (await Calls(store).update_rollout(request)).rollout
    return answer


async def get(store: Store, rollout_id: str) -> rollout_pb2.Rollout:
    request = rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)
    answer: rollout_pb2.Rollout = (await Calls(store).get_rollout(request)).rollout
    return answer


async def allocate(store: Store, rollout_id: str) -> tuple[str, int]:
    """Allocate a sequence id of a rollout's attempt; returns attempt id and number, which no other call gets."""
    request = span_pb2.AllocateSequenceIdsRequest()
    request.demands.add(rollout_id=rollout_id, attempt_id="latest", count=1)
    (ids,) = (await Calls(store).allocate_sequence_ids(request)).ranges
    return ids.attempt.attempt_id, ids.first_sequence_id


def one_of(whole: span_pb2.SpanBatch, index: int) -> span_pb2.SpanBatch:
    """Return a batch of one of the spans."""
    return span_pb2.SpanBatch(
        rollout_id=whole.rollout_id, attempt_id=whole.attempt_id, spans=[whole.spans[index]]
    )


async def add_spans(store: Store, sent: span_pb2.SpanBatch) -> span_pb2.IngestResult:
    answer = await Calls(store).add_spans(span_pb2.AddSpansRequest(batch=sent))
    result: span_pb2.IngestResult = answer.result
    return result


async def remove_all(store: Store) -> None:
    """Remove what has finished, until the store no longer knows that it was there."""
    await store.removal.retain(ALL)
    await store.engine.barrier()
    store.engine.live.state.trim(store.engine.committer.durable_through)


# A rollout that is read


@BACKENDS
async def test_rollout_changed_and_evicted_during_a_read_is_read_again(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "r")
        reads = SlowReads(store, "load")
        reader = await reads.begin(get(store, "r"))
        writer = await reads.begin(update(store, rollout_id="r", group_id="g"))
        assert (await update(store, rollout_id="r", priority=7)).priority == 7
        await evict(store)
        reads.release_all()
        while not (reader.done() and writer.done()):
            await asyncio.sleep(0)
        assert (await reader).priority == 7
        assert (await writer).priority == 7
        await evict(store)
        assert ((await get(store, "r")).priority, (await get(store, "r")).group_id) == (7, "g")


@BACKENDS
async def test_rollout_removed_during_a_read_is_not_found(tmp_path: Path, backend: str) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "r")
        reads = SlowReads(store, "load")
        reader = await reads.begin(get(store, "r"))
        await remove_all(store)
        reads.release()
        with pytest.raises(RolloutNotFound):
            await reader
        assert "r" not in store.engine.live.state.entries


@BACKENDS
@pytest.mark.parametrize("evicted", [False, True])
async def test_reader_gets_the_rollout_that_has_the_id_now(
    tmp_path: Path, backend: str, evicted: bool
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "r", b"1")
        reads = SlowReads(store, "load")
        reader = await reads.begin(get(store, "r"))
        await remove_all(store)
        await enqueue(store, "r", b"2")
        if evicted:
            await Calls(store).cancel_rollouts(rollout_pb2.CancelRolloutsRequest(rollout_ids=["r"]))
            await evict(store)
        reads.release()
        assert (await reader).input_json == b"2"


@BACKENDS
async def test_id_taken_and_evicted_during_a_read_is_not_given_twice(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        reads = SlowReads(store, "load")
        spec = rollout_pb2.RolloutSpec(rollout_id="r", input_json=b"2")
        late = await reads.begin(
            Calls(store).start_rollout(claim_pb2.StartRolloutRequest(rollout=spec))
        )
        await finished(store, "r", b"1")
        reads.release()
        with pytest.raises(RolloutExists):
            await late
        assert (await get(store, "r")).input_json == b"1"


async def test_read_that_overlaps_a_recovery_is_repeated(tmp_path: Path) -> None:
    async with store_in(tmp_path, "sqlite") as store:
        await finished(store, "r")
        reads = SlowReads(store, "load")
        reader = await reads.begin(get(store, "r"))
        await update(store, rollout_id="r", priority=7)
        await recovered(store)
        reads.release()
        assert (await reader).priority == 7
        assert store.engine.live.state.entries["r"].rollout.priority == 7


async def recovered(
    store: Store, before_it_is_over: Callable[[], Awaitable[None]] | None = None
) -> None:
    """Have a commit fail, and return when the store has recovered from what is on disk."""
    storage, over = store.engine.storage, asyncio.Event()
    commit, probe = storage.commit, storage.probe

    async def last_step(size: int) -> None:
        storage.probe = probe  # type: ignore[method-assign]
        if before_it_is_over is not None:
            await before_it_is_over()
        await probe(size)

    async def failing(_changes: Any) -> None:
        storage.commit, storage.probe = commit, last_step  # type: ignore[method-assign]
        raise StorageFailed("disk on fire")

    def usable(yes: bool) -> None:
        if yes:
            asyncio.get_running_loop().call_soon(over.set)

    storage.commit = failing  # type: ignore[method-assign]
    store.engine.watch_usability(usable)
    with pytest.raises(StorageFailed):
        await enqueue(store, "lost", b"1")
    await over.wait()


@pytest.mark.parametrize("kind", ["start", "allocate", "resources"])
async def test_call_whose_read_returns_during_a_recovery_changes_nothing(
    tmp_path: Path, kind: str
) -> None:
    async with store_in(tmp_path, "sqlite") as store:
        await finished(store, "r")
        kept = resources_pb2.UpdateResourcesRequest(resources_id="k")
        await Calls(store).update_resources(kept)
        reads = SlowReads(store, "get_resources" if kind == "resources" else "load")
        spec = rollout_pb2.RolloutSpec(rollout_id="new", input_json=b"2")
        calls = {
            "start": lambda: Calls(store).start_rollout(
                claim_pb2.StartRolloutRequest(rollout=spec)
            ),
            "allocate": lambda: allocate(store, "r"),
            "resources": lambda: Calls(store).update_resources(kept),
        }
        late = await reads.begin(calls[kind]())

        async def release() -> None:
            # What was in memory is there again: only the last check of the recovery is under way.
            reads.release_all()
            with pytest.raises(StorageFailed):
                await late

        await recovered(store, release)
        with pytest.raises(RolloutNotFound):
            await get(store, "new")
        assert (await allocate(store, "r"))[1] == 1
        assert (await Calls(store).update_resources(kept)).resources.version == 2


@BACKENDS
async def test_rollout_that_finished_anew_since_the_list_was_read_stays(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        for rollout_id in ("a", "b"):
            await finished(store, rollout_id)

        async def used_bytes() -> int:
            return 60 * sum(store.engine.live.state.counters.rollouts.values())

        store.engine.storage.used_bytes = used_bytes  # type: ignore[method-assign]
        reads = SlowReads(store, "finished")
        removal = await reads.begin(store.removal.retain(Retention(data_bytes=100)))
        await update(store, rollout_id="a", status=rollout_pb2.ROLLOUT_STATUS_QUEUING)
        await Calls(store).cancel_rollouts(rollout_pb2.CancelRolloutsRequest(rollout_ids=["a"]))
        await store.engine.barrier()
        reads.release()
        assert await removal == 1
        assert [rollout.rollout_id for rollout in await listed(store)] == ["a"]


async def listed(store: Store) -> list[rollout_pb2.Rollout]:
    return list((await Calls(store).list_rollouts(rollout_pb2.ListRolloutsRequest())).rollouts)


# Spans


@BACKENDS
async def test_span_ids_read_for_a_rollout_that_left_memory_are_not_kept(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "r")
        sent = [batch("r", "latest", name) for name in "abc"]
        await add_spans(store, sent[0])
        await evict(store)
        reads = SlowReads(store, "span_ids")
        late = await reads.begin(add_spans(store, sent[1]))
        await evict(store)
        assert (await add_spans(store, sent[1])).accepted_count == 1
        assert (await add_spans(store, sent[2])).accepted_count == 1
        reads.release_all()
        assert (await late).duplicate_count == 1
        state = store.engine.live.state
        (attempt,) = state.entries["r"].attempts.values()
        assert len(attempt.span_ids or ()) == state._span_id_count.used == 3


@BACKENDS
async def test_batch_for_the_latest_attempt_goes_to_one_attempt(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "r")
        both = batch("r", "latest", "a", "b")
        await add_spans(store, one_of(both, 0))
        reads = SlowReads(store, "get_spans")
        late = await reads.begin(add_spans(store, both))
        await Calls(store).start_attempt(claim_pb2.StartAttemptRequest(rollout_id="r"))
        await add_spans(store, one_of(both, 1))
        reads.release_all()
        assert (await late).accepted_count == 1
        attempts = store.engine.live.state.entries["r"].attempts.values()
        assert [attempt.record.span_count for attempt in attempts] == [1, 2]


# All interleavings

STEPS = st.one_of(
    st.tuples(st.just("begin"), st.sampled_from(["get", "allocate", "enqueue"])),
    st.tuples(st.just("at once"), st.sampled_from(["get", "allocate", "enqueue", "update"])),
    st.tuples(st.just("release"), st.integers(0, 2)),
    st.tuples(st.sampled_from(["evict", "remove", "make"]), st.none()),
)


class Interleaving:
    """One rollout id, and calls that read it slowly beside others that change what has it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.reads = SlowReads(store, "load")
        self.late: list[asyncio.Task[Any]] = []
        self.allocated: list[tuple[str, int]] = []
        self.count = 0

    async def call(self, name: str) -> None:
        """Make a call; errors of the store are answers, too."""
        self.count += 1
        try:
            if name == "get":
                await get(self.store, "r")
            elif name == "allocate":
                self.allocated.append(await allocate(self.store, "r"))
            elif name == "update":
                await update(self.store, rollout_id="r", priority=self.count)
            else:
                await enqueue(self.store, "r", b"%d" % self.count)
        except StoreError as error:
            assert not isinstance(error, FieldInvalid)

    async def step(self, kind: str, argument: Any) -> None:
        """Do one step."""
        if kind == "begin":
            self.late.append(await self.reads.begin(self.call(argument)))
        elif kind == "at once":
            await self.call(argument)
        elif kind == "release":
            self.reads.release(argument)
            for _ in range(3):
                await asyncio.sleep(0)
        elif kind == "evict":
            await Calls(self.store).cancel_rollouts(
                rollout_pb2.CancelRolloutsRequest(rollout_ids=await self.known())
            )
            await evict(self.store)
        elif kind == "remove":
            await remove_all(self.store)
        elif not await self.known():
            await finished(self.store, "r")

    async def known(self) -> list[str]:
        """Return the ids of all rollouts."""
        return [rollout.rollout_id for rollout in await listed(self.store)]

    async def check(self) -> None:
        """Show that memory is what is stored, and that no number was given twice."""
        while not all(task.done() for task in self.late):
            self.reads.release_all()
            await asyncio.sleep(0)
        for task in self.late:
            await task
        await self.store.engine.barrier()
        stored = await self.store.engine.storage.load(["r"])
        assert await self.known() == [item.row.rollout.rollout_id for item in stored]
        entry = self.store.engine.live.state.entries.get("r")
        if entry is not None:
            (item,) = stored
            # Measures are for filters: a read leaves them out.
            row, stored_row = (r._replace(measures=NONE) for r in (entry.row(), item.row))
            assert (row, entry.input_json) == (stored_row, item.input_json)
            rows = [attempt.row() for attempt in entry.attempts.values()]
            assert rows == item.attempts
        assert len(set(self.allocated)) == len(self.allocated)


@BACKENDS
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=14))
async def test_memory_is_what_is_stored_whatever_overtakes_a_read(
    tmp_path_factory: pytest.TempPathFactory, backend: str, steps: list[tuple[str, Any]]
) -> None:
    async with store_in(tmp_path_factory.mktemp("slow"), backend) as store:
        await finished(store, "r")
        interleaving = Interleaving(store)
        for kind, argument in steps:
            await interleaving.step(kind, argument)
        await interleaving.check()
