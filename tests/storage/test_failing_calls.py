"""The engine over a storage whose n-th call fails: callers that repeat their calls end where they would without it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.server.config import Config
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing import FailingStorage, Fault
from lightningstore.v1 import attempt_pb2, claim_pb2, resources_pb2, rollout_pb2, span_pb2

from tests.calls import Calls
from tests.clock import ManualClock
from tests.contract.helpers import batch

pytestmark = pytest.mark.asyncio


class Caller:
    """Calls a store, and repeats each call until the storage does not fail it."""

    def __init__(self, storage: FailingStorage) -> None:
        self.store = Store(Engine(storage, ManualClock(), Config(backend="sqlite").limits()))
        self.calls = Calls(self.store)
        self.failures = 0
        self._usable = asyncio.Event()
        self._usable.set()
        self.store.engine.watch_usability(self._note)

    def _note(self, usable: bool) -> None:
        if usable:
            self._usable.set()
        else:
            self._usable.clear()

    async def __call__(self, call: Callable[..., Awaitable[Any]], *request: Any) -> Any:
        for _ in range(3):
            try:
                return await call(*request)
            except StorageFailed:
                self.failures += 1
                await self._usable.wait()
        pytest.fail("one fault fails more than two calls in a row")

    async def play(self) -> None:
        """Enqueue five rollouts, finish three, cancel one."""
        calls = self.calls
        await self(
            calls.add_resources,
            resources_pb2.AddResourcesRequest(resources_id="rs", request_id="add"),
        )
        specs = [rollout_pb2.RolloutSpec(rollout_id=f"r{n}", input_json=b"1") for n in range(5)]
        request = rollout_pb2.EnqueueRolloutsRequest(rollouts=specs, request_id="enqueue")
        await self(calls.enqueue_rollouts, request)
        claim = claim_pb2.DequeueRolloutsRequest(limit=3, worker_id="w", request_id="claim")
        claimed = (await self(calls.dequeue_rollouts, claim)).rollouts
        for rollout in claimed:
            spans = batch(rollout.rollout_id, "latest", f"span {rollout.rollout_id}")
            await self(calls.add_spans, span_pb2.AddSpansRequest(batch=spans))
            done = attempt_pb2.Attempt(
                rollout_id=rollout.rollout_id,
                attempt_id=rollout.latest_attempt_id,
                status=attempt_pb2.ATTEMPT_STATUS_SUCCEEDED,
            )
            report = attempt_pb2.UpdateAttemptRequest(
                attempt=done, request_id=f"report {rollout.rollout_id}"
            )
            await self(calls.update_attempt, report)
        await self(calls.cancel_rollouts, rollout_pb2.CancelRolloutsRequest(rollout_ids=["r3"]))

    async def assert_played(self) -> None:
        request = rollout_pb2.ListRolloutsRequest(include_total_size=True)
        listed = await self(self.calls.list_rollouts, request)
        assert listed.total_size == 5
        assert [r.status for r in listed.rollouts] == [4, 4, 4, 6, 1]
        assert [r.attempt_count for r in listed.rollouts] == [1, 1, 1, 0, 0]
        assert [r.completion_number for r in listed.rollouts] == [1, 2, 3, 4, 0]
        counters = self.store.engine.live.state.counters
        assert {status: n for status, n in counters.rollouts.items() if n} == {4: 3, 6: 1, 1: 1}
        assert counters.spans == 3


@pytest.mark.parametrize("fault", Fault, ids=lambda fault: fault.value)
async def test_failed_call_of_the_storage_changes_nothing_for_callers_that_repeat(
    fault: Fault, tmp_path: Path
) -> None:
    at = 1
    while True:
        storage = SqliteStorage(tmp_path / f"{at}.db", full_sync=False)
        failing = FailingStorage(storage, at, fault)
        caller = Caller(failing)
        try:
            await caller(caller.store.engine.open)
            await caller.play()
            await caller.assert_played()
            if failing.faults.calls < at:
                assert caller.failures == 0
                break
            assert caller.failures >= 1
        finally:
            failing.faults.at = 0  # closing is not what this is about
            await caller.store.close()
        at += 1
    assert at > 10
