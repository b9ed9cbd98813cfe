"""Garbage collection: full collections stay short, and what leaves memory does not wait for them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from lightningstore.service.engine import state
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.server.tuning import THAW_SECONDS, Thaw
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, Attempt, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import DeleteRolloutsRequest, RolloutSpec

from tests.calls import Calls

ROLLOUTS, KEPT = 20, 3


class Cycle:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


class Time:
    """A clock."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time() -> Iterator[Time]:
    """Freeze survivors by this clock."""
    made = Time()
    thaw = Thaw(made.monotonic)
    gc.callbacks.append(thaw)
    yield made
    gc.callbacks.remove(thaw)
    gc.unfreeze()


def test_full_collection_visits_only_what_is_new(time: Time) -> None:
    kept = Cycle()
    assert any(each is kept for each in gc.get_objects())
    gc.collect(1)
    assert any(each is kept for each in gc.get_objects())
    gc.collect()
    assert not any(each is kept for each in gc.get_objects())  # it has no frozen ones
    time.now += THAW_SECONDS - 1
    gc.collect()
    assert gc.get_freeze_count() > 0


def test_cycles_of_long_ago_are_freed_within_the_hour(time: Time) -> None:
    old = Cycle()
    gc.collect()
    gone = weakref.ref(old)
    del old
    gc.collect()
    assert gone() is not None
    time.now += THAW_SECONDS
    gc.collect()
    assert gone() is None


def entries() -> int:
    """Return how many rollouts of stores there are."""
    return sum(isinstance(each, state.Entry) for each in gc.get_objects())


@pytest.mark.asyncio
async def test_rollout_that_leaves_memory_is_freed_without_a_collection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "CACHED_ROLLOUTS", KEPT)
    gc.collect()
    before = entries()
    store = await open_store(Config(backend="sqlite", db=tmp_path / "s.db"))
    calls = Calls(store)
    gc.disable()
    try:
        ids = []
        for _ in range(ROLLOUTS):
            spec = RolloutSpec(input_json=b"1")
            rollout = (await calls.start_rollout(StartRolloutRequest(rollout=spec))).rollout
            ids.append(rollout.rollout_id)
            attempt = Attempt(
                rollout_id=rollout.rollout_id,
                attempt_id=rollout.latest_attempt.attempt_id,
                status=ATTEMPT_STATUS_SUCCEEDED,
            )
            request = UpdateAttemptRequest(attempt=attempt, update_mask={"paths": ["status"]})
            await calls.update_attempt(request)
        assert entries() - before <= 2 * KEPT
        await calls.delete_rollouts(DeleteRolloutsRequest(rollout_ids=ids))
        assert entries() - before <= 1
    finally:
        gc.enable()
        await store.close()
