"""A database that lost commits which were answered: the servers notice it, say so, and clients do not miss it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lightningstore.client import (
    AsyncLightningStore,
    FailedPreconditionError,
    LightningStoreError,
    NotFoundError,
)
from lightningstore.service.storage.postgres import commits
from lightningstore.service.storage.postgres.answered import Missing
from lightningstore.service.storage.postgres.database import Database

from tests.faults.cluster import SHORT_LEASE, ServerCluster
from tests.faults.lab import WAIT_SECONDS
from tests.faults.mutant import mutate_fence
from tests.machines import Servers
from tests.postgres import PostgresServer, running

pytestmark = pytest.mark.asyncio

#: A lease that outlasts a restart of the database.
LONG_LEASE = 60.0
#: Seconds after which servers that have not noticed a loss will not.
UNNOTICED_SECONDS = 3.0


class Loss:
    """Clients of several servers, whose database goes back."""

    def __init__(self, addresses: Sequence[str], postgres: PostgresServer) -> None:
        self.stores = [AsyncLightningStore(address, timeout=20.0) for address in addresses]
        self._postgres = postgres
        self.store_id = ""

    async def prepare(self) -> Path:
        """Enqueue and finish a rollout that is kept and one that is lost; returns what the database goes back to."""
        await self._live("kept")
        copy = await asyncio.to_thread(self._postgres.keep_state)
        await self._live("lost")
        self.store_id = (await self.stores[0].get_server_info()).store_id
        return copy

    async def _live(self, rollout_id: str) -> None:
        first, last = self.stores[0], self.stores[-1]
        await first.enqueue_rollouts([{"input": 1, "rollout_id": rollout_id}])
        (rollout,) = await last.dequeue_rollouts(1)
        attempt_id = rollout.attempt.attempt_id
        await first.update_attempt(rollout_id, attempt_id, status="succeeded")

    async def go_back(self, copy: Path) -> None:
        """Have the database go back."""
        await asyncio.to_thread(self._postgres.go_back, copy)

    async def check_noticed(self, logs: Callable[[], str], seconds: float = WAIT_SECONDS) -> None:
        """Check that all servers show the store under another id, without what is lost."""
        end = time.monotonic() + seconds
        ids = {self.store_id}
        while len(ids) > 1 or self.store_id in ids:
            assert time.monotonic() < end, "the loss is not noticed"
            await asyncio.sleep(0.1)
            try:
                ids = {(await store.get_server_info()).store_id for store in self.stores}
            except LightningStoreError:
                continue
        for store in self.stores:
            assert (await store.get_rollout("kept")).status.value == "succeeded"
            with pytest.raises(NotFoundError):
                await store.get_rollout("lost")
            with pytest.raises(FailedPreconditionError, match="store_id"):
                async for _ in store.watch_rollouts(2, store_id=self.store_id):
                    pass
        assert "the database went back in time: commits up to" in logs()
        assert logs().count("from now on") == 1
        (rollout,) = await self.stores[0].enqueue_rollouts([{"input": 3}])
        assert (await self.stores[-1].get_rollout(rollout.rollout_id)).input == 3

    async def close(self) -> None:
        """Close the clients."""
        for store in self.stores:
            await store.close()


async def lose(
    logs: Callable[[], str], *, writes: bool = False, seconds: float = WAIT_SECONDS
) -> None:
    """Have the database of two servers go back, and check that they notice, after a write if `writes`."""
    with running() as postgres:
        servers = Servers(postgres, lease_seconds=LONG_LEASE)
        await servers.start()
        loss = Loss(servers.addresses, postgres)
        try:
            await loss.go_back(await loss.prepare())
            if writes:
                await loss.stores[0].enqueue_rollouts([{"input": 2}])
            await loss.check_noticed(logs, seconds)
        finally:
            await loss.close()
            await servers.stop()
            await servers.close()


async def test_owner_notices_without_a_write_that_the_database_went_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    await lose(lambda: caplog.text)


async def test_next_write_notices_and_without_the_sequence_it_does_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: Database) -> list[Missing]:
        return []

    monkeypatch.setattr(Database, "missing", nothing)
    await lose(lambda: caplog.text, writes=True)
    monkeypatch.setitem(commits.SQL, "fence", mutate_fence("no sequence check"))
    commits._text.cache_clear()
    with pytest.raises(AssertionError, match="the loss is not noticed"):
        await lose(lambda: caplog.text, writes=True, seconds=UNNOTICED_SECONDS)
    commits._text.cache_clear()


async def test_loss_is_noticed_although_another_server_took_over(tmp_path: Path) -> None:
    """The owner, which knows what is lost, is stopped until another server serves without it."""
    with running() as postgres:
        async with ServerCluster(tmp_path, postgres, lease_seconds=SHORT_LEASE) as cluster:
            loss = Loss(cluster.addresses, postgres)
            copy = await loss.prepare()
            owner = await cluster.owner_after("default")
            owner.signal(signal.SIGSTOP)
            try:
                await loss.go_back(copy)
                # A client that has not gone to the owner, which is stopped.
                address = cluster.addresses[cluster.servers.index(owner) - 1]
                async with AsyncLightningStore(address) as other:
                    assert (await other.get_server_info()).store_id == loss.store_id
                    assert [one.rollout_id async for one in other.iter_rollouts()] == ["kept"]
            finally:
                owner.signal(signal.SIGCONT)
            await loss.check_noticed(lambda: "".join(one.log() for one in cluster.servers))
            await loss.close()
