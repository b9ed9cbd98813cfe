"""A storage whose n-th call fails, and the suite that runs every case over it."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases
from lightningstore.service.storage.testing.records import (
    ANY_KEY,
    batches,
    completed,
    count,
    items,
    loaded,
    put,
    rollout,
    update,
)
from lightningstore.service.storage.testing.suite import StorageSuite, case_names, run_case
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

#: The calls that fail, one in each run of a case.
FAILING_CALLS = (1, 2, 3, 5, 8, 13, 21)


class InjectedFault(StorageFailed):
    """A fault that a test asked for."""

    def __init__(self, call: str) -> None:
        super().__init__(f"injected into {call}")


class Fault(Enum):
    """How the call fails."""

    #: It is not made.
    BEFORE = "before"
    #: It is made, and reported as failed. A scan fails after its first item.
    AFTER = "after"
    #: It is cancelled once it has begun. A scan is left after its first item.
    CANCELLED = "cancelled"


@dataclass
class Faults:
    """Counts the calls of storages, and names the one that fails."""

    #: The call that fails, counted from 1; 0: none.
    at: int = 0
    fault: Fault = Fault.BEFORE
    calls: int = 0

    def next_call(self) -> Fault | None:
        """Count a call; returns its fault if it is the one that fails."""
        self.calls += 1
        return self.fault if self.calls == self.at else None


class FailingStorage:
    """Passes calls on to a storage, and makes one of them fail with InjectedFault.

    Asynchronous methods and scans count as calls. A commit that completes at once cannot fail and does not count.

    Example:
        storage = FailingStorage(SqliteStorage(path), at=3)
        await storage.open()
        await storage.commit(changes)
        await storage.load(["r1"])  # raises InjectedFault

    """

    def __init__(
        self,
        inner: Storage,
        at: int = 0,
        fault: Fault = Fault.BEFORE,
        *,
        faults: Faults | None = None,
    ) -> None:
        """Wrap a storage.

        Args:
            inner: The storage that is called.
            at: The call that fails, counted from 1; 0: none.
            fault: How it fails.
            faults: In place of `at` and `fault`, to count the calls of several storages together.

        """
        self.inner = inner
        self.faults = faults or Faults(at, fault)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the inner storage, a method with the fault in it."""
        method = getattr(self.inner, name)
        if inspect.isasyncgenfunction(method):
            return partial(self._scan, method)
        takes_time = name == "commit" and self.inner.durability != DURABILITY_NONE
        if takes_time or inspect.iscoroutinefunction(method):
            return partial(self._call, method)
        return method

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        fault = self.faults.next_call()
        if fault is None:
            return await method(*args)
        if fault is Fault.BEFORE:
            raise InjectedFault(method.__name__)
        task = asyncio.ensure_future(method(*args))
        if fault is Fault.CANCELLED:
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.result()  # an error of its own comes first
        raise InjectedFault(method.__name__)

    async def _scan(
        self, method: Callable[..., AsyncGenerator[Any, None]], *args: Any
    ) -> AsyncIterator[Any]:
        fault = self.faults.next_call()
        if fault is Fault.BEFORE:
            raise InjectedFault(method.__name__)
        async with aclosing(method(*args)) as scan:
            async for item in scan:
                yield item
                if fault is not None:
                    break
        if fault is not None:
            raise InjectedFault(method.__name__)


class FaultSuite(Cases):
    """The cases of StorageSuite again, with a call that fails: the store is whole and usable afterwards.

    Example:
        class TestMineWithFaults(FaultSuite):
            async def new_storage(self, place):
                return MyStorage(place / "data")

    """

    pytestmark = pytest.mark.asyncio

    @pytest.mark.parametrize("case", case_names(with_all=False))
    async def test_store_is_usable_after_a_failed_call(self, case: str, tmp_path: Path) -> None:
        """The 1st call fails, in the next run the 2nd, and so on, until the case has no more calls."""
        for at in FAILING_CALLS:
            # Over all cases and calls, each fault meets each method.
            fault = list(Fault)[(at + len(case)) % len(Fault)]
            faults = Faults(at, fault)
            suite = _WithFaults(self, faults)
            try:
                await run_case(suite, case, tmp_path / str(at))
            except* InjectedFault:
                pass
            if faults.calls < at:
                break


class _WithFaults(StorageSuite):
    """Runs cases on the storages of another suite, with faults, and checks the stores when a case ends."""

    def __init__(self, maker: Cases, faults: Faults) -> None:
        self._maker = maker
        self._faults = faults
        self._inner: list[tuple[Path, Storage]] = []

    async def new_storage(self, place: Path) -> Storage:
        inner = await self._maker.new_storage(place)
        self._inner.append((place, inner))
        return cast("Storage", FailingStorage(inner, faults=self._faults))

    async def take_over(self, storage: Storage) -> None:
        await self._maker.take_over(cast("FailingStorage", storage).inner)

    async def end_session(self) -> None:
        """Close everything, and check that each store can be opened and is whole."""
        for _, inner in reversed(self._inner):
            await inner.close()
        for place, inner in dict(self._inner).items():
            storage = inner
            if inner.durability != DURABILITY_NONE:
                storage = await self._maker.new_storage(place)
            await storage.open()
            try:
                await assert_usable(storage)
            finally:
                await storage.close()


async def assert_usable(storage: Storage) -> None:
    """Check that the answers of an open storage agree with each other, and that it accepts a commit."""
    everything = RolloutQuery(limit=ANY_KEY)
    scanned = await items(storage.scan_rollouts(everything))
    ids = [item.row.rollout.rollout_id for item in scanned]
    assert await count(storage) == len(ids)
    by_id = await loaded(storage, *ids)
    for rollout_id, item in zip(ids, scanned, strict=True):
        assert by_id[rollout_id]._replace(attempts=by_id[rollout_id].attempts[-1:]) == item
    finished = [item for item in scanned if item.row.rollout.completion_number]
    finished.sort(key=lambda item: item.row.rollout.completion_number)
    assert await completed(storage) == finished
    for group_id in {item.row.rollout.group_id for item in scanned} - {""}:
        members = [item for item in scanned if item.row.rollout.group_id == group_id]
        assert await storage.group_members(group_id) == [
            item.row.rollout.rollout_id for item in members
        ]
    key = max([item.row.key for item in scanned], default=0) + 1
    leftover = await storage.leftover_spans()
    for item in scanned[:100]:
        assert not set(await batches(storage, item.row.key)) & set(leftover)
    if key < ANY_KEY:
        await put(storage, rollout(key, rollout_id="usable"))
        assert list(await loaded(storage, "usable")) == ["usable"]
        await update(storage, removed=[key])
        assert await count(storage) == len(ids)
