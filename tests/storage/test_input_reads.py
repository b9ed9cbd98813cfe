"""Claims read the large inputs of their rollouts: what happens where that read is slow, fails or finds damage."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.service.engine.state import SMALL_INPUT_BYTES
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import DataDamaged, ReadFailed
from lightningstore.service.rules.limits import Retention
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1 import claim_pb2, rollout_pb2

from tests.calls import Calls
from tests.clock import ManualClock
from tests.storage.slow_reads import SlowReads

pytestmark = pytest.mark.asyncio

COUNT = 4


def large(number: int) -> bytes:
    return b'"%d%s"' % (number, b"x" * SMALL_INPUT_BYTES)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store with rollouts r0, r1 … in the queue, whose inputs are in the file alone."""
    store = await open_store(Config(backend="sqlite", db=tmp_path / "s.db"), ManualClock())
    await enqueue(store, {f"r{n}": large(n) for n in range(COUNT)})
    entries = store.engine.live.state.entries
    assert [entry.input_json for entry in entries.values()] == [b""] * COUNT
    yield store
    await store.close()


async def enqueue(store: Store, inputs: dict[str, bytes]) -> None:
    specs = [rollout_pb2.RolloutSpec(rollout_id=i, input_json=data) for i, data in inputs.items()]
    await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))


async def claim(store: Store, limit: int = COUNT, **fields: Any) -> list[rollout_pb2.Rollout]:
    request = claim_pb2.DequeueRolloutsRequest(limit=limit, **fields)
    return list((await Calls(store).dequeue_rollouts(request)).rollouts)


async def get(store: Store, rollout_id: str) -> rollout_pb2.Rollout:
    request = rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)
    answer: rollout_pb2.Rollout = (await Calls(store).get_rollout(request)).rollout
    return answer


def lose_input(path: Path, key: int) -> None:
    """Delete an input behind the store's back."""
    with closing(sqlite3.connect(path / "s.db")) as connection:
        connection.execute("DELETE FROM inputs WHERE rollout_key = ?", [key])
        connection.commit()


async def test_claim_reads_all_inputs_with_one_call(store: Store) -> None:
    read, calls = store.engine.storage.load, []

    async def counted(rollout_ids: list[str]) -> Any:
        calls.append(list(rollout_ids))
        return await read(rollout_ids)

    store.engine.storage.load = counted  # type: ignore[method-assign, assignment]
    claimed = await claim(store)
    assert [rollout.input_json for rollout in claimed] == [large(n) for n in range(COUNT)]
    assert calls == [[f"r{n}" for n in range(COUNT)]]


async def test_claim_of_small_inputs_reads_nothing(store: Store) -> None:
    await claim(store)
    await enqueue(store, {"small": b"1"})

    async def unexpected(_rollout_ids: list[str]) -> Any:
        raise AssertionError

    store.engine.storage.load = unexpected  # type: ignore[method-assign, assignment]
    assert [rollout.input_json for rollout in await claim(store)] == [b"1"]


async def test_claim_whose_read_fails_can_be_repeated_for_the_same_attempts(store: Store) -> None:
    read = store.engine.storage.load

    async def failing(_rollout_ids: list[str]) -> Any:
        store.engine.storage.load = read  # type: ignore[method-assign]
        raise ReadFailed("disk on fire")

    store.engine.storage.load = failing  # type: ignore[method-assign, assignment]
    with pytest.raises(ReadFailed):
        await claim(store, 2, request_id="q")
    claimed = await claim(store, 2, request_id="q")
    assert [rollout.input_json for rollout in claimed] == [large(0), large(1)]
    assert [rollout.attempt_count for rollout in claimed] == [1, 1]
    assert [rollout.rollout_id for rollout in await claim(store)] == ["r2", "r3"]


async def test_attempt_whose_input_is_damaged_fails_and_the_others_are_claimed(
    store: Store, tmp_path: Path
) -> None:
    lose_input(tmp_path, 2)
    claimed = await claim(store, request_id="q")
    assert [rollout.rollout_id for rollout in claimed] == ["r0", "r2", "r3"]
    assert [rollout.input_json for rollout in claimed] == [large(0), large(2), large(3)]
    (damaged,) = store.engine.live.state.entries["r1"].attempts.values()
    assert damaged.entry.rollout.status == rollout_pb2.ROLLOUT_STATUS_FAILED
    assert damaged.record.failure.type == "DataDamaged"
    assert "damaged" in damaged.record.failure.message
    again = await claim(store, request_id="q")
    assert [rollout.payloads_omitted for rollout in again] == [False, True, False, False]
    assert [rollout.input_json for rollout in again][2:] == [large(2), large(3)]


async def test_read_and_start_of_a_rollout_whose_input_is_damaged_fail(
    store: Store, tmp_path: Path
) -> None:
    lose_input(tmp_path, 2)
    with pytest.raises(DataDamaged):
        await get(store, "r1")
    with pytest.raises(DataDamaged):
        await Calls(store).start_attempt(claim_pb2.StartAttemptRequest(rollout_id="r1"))
    assert store.engine.live.state.entries["r1"].attempts == {}
    cancelled = rollout_pb2.CancelRolloutsRequest(rollout_ids=["r0", "r1"])
    answer = (await Calls(store).cancel_rollouts(cancelled)).rollouts
    assert [rollout.payloads_omitted for rollout in answer] == [False, True]
    assert {rollout.status for rollout in answer} == {rollout_pb2.ROLLOUT_STATUS_CANCELLED}


async def test_empty_input_of_a_damaged_file_is_damage(store: Store, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "s.db")) as file:
        file.execute("UPDATE inputs SET input_json = x''")
        file.commit()
    with pytest.raises(DataDamaged, match="its input is empty"):
        await asyncio.wait_for(get(store, "r1"), 10)
    await enqueue(store, {"r9": large(9)})  # the store goes on


async def test_claim_that_waits_for_inputs_holds_up_no_other(store: Store) -> None:
    reads = SlowReads(store, "load")
    slow = await reads.begin(claim(store, 1))
    await enqueue(store, {"small": b"1"})
    claimed = await claim(store)
    assert [rollout.rollout_id for rollout in claimed] == ["r1", "r2", "r3", "small"]
    reads.release()
    assert [rollout.input_json for rollout in await slow] == [large(0)]


@pytest.mark.parametrize("changed", [b"2", large(7)])
async def test_input_changed_while_it_is_read_is_the_new_one(store: Store, changed: bytes) -> None:
    reads = SlowReads(store, "load")
    slow = await reads.begin(claim(store, 1))
    request = rollout_pb2.UpdateRolloutRequest(
        rollout=rollout_pb2.Rollout(rollout_id="r0", input_json=changed)
    )
    request.update_mask.paths.append("input_json")
    await Calls(store).update_rollout(request)
    reads.release_all()
    assert [rollout.input_json for rollout in await slow] == [changed]
    assert (await get(store, "r0")).input_json == changed


async def test_rollout_removed_while_its_input_is_read_is_left_out(store: Store) -> None:
    reads = SlowReads(store, "load")
    slow = await reads.begin(claim(store, 2, worker_id="w"))
    (attempt,) = store.engine.live.state.entries["r0"].attempts.values()
    cancelled = rollout_pb2.CancelRolloutsRequest(rollout_ids=["r0"])
    await Calls(store).cancel_rollouts(cancelled)
    await store.engine.barrier()
    await store.engine.clock.advance(601)  # type: ignore[attr-defined]
    await store.engine.barrier()
    assert await store.removal.retain(Retention(finished_seconds=0.0)) == 1
    reads.release_all()
    assert [rollout.rollout_id for rollout in await slow] == ["r1"]
    assert attempt.entry.rollout.status == rollout_pb2.ROLLOUT_STATUS_CANCELLED
