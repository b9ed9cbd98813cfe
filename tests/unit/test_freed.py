"""Rollouts that leave memory are freed at once, without the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from lightningstore.service.engine import state
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, Attempt, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import DeleteRolloutsRequest, RolloutSpec

from tests.calls import Calls


@pytest.fixture(autouse=True)
def _uncollected() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


async def run(store: Store, rollout_id: str) -> weakref.ref[Entry]:
    """Run a rollout to its end; return a reference to it."""
    calls = Calls(store)
    spec = RolloutSpec(rollout_id=rollout_id, input_json=b"1")
    await calls.start_rollout(StartRolloutRequest(rollout=spec))
    entry = store.engine.live.state.entries[rollout_id]
    report = UpdateAttemptRequest(attempt=Attempt(rollout_id=rollout_id, attempt_id="latest"))
    report.attempt.status = ATTEMPT_STATUS_SUCCEEDED
    report.update_mask.paths.append("status")
    await calls.update_attempt(report)
    return weakref.ref(entry)


async def evict(store: Store) -> None:
    for rollout_id in ("s", "t"):
        await run(store, rollout_id)


async def delete(store: Store) -> None:
    await Calls(store).delete_rollouts(DeleteRolloutsRequest(rollout_ids=["r"]))


async def reload(store: Store) -> None:
    store.engine.committer.fail(StorageFailed("gone"))
    while not store.engine.committer.failures or store.engine.committer.failure is not None:
        await asyncio.sleep(0)


@pytest.mark.parametrize("leave", [evict, delete, reload])
@pytest.mark.parametrize("backend", ["memory", "sqlite"])
@pytest.mark.asyncio
async def test_rollouts_are_freed(
    backend: str,
    leave: Callable[[Store], Awaitable[None]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state, "CACHED_ROLLOUTS", 1)
    store = await open_store(Config(backend=backend, db=tmp_path / "s.db"))
    reference = await run(store, "r")
    await leave(store)
    assert "r" not in store.engine.live.state.entries
    assert reference() is None
    await store.close()
