"""One open store: its engine, its operations and its timers.

Operations take and return messages of the contract. Server streams are async generators that yield
None once they are established, and then serialised responses. All of them raise StoreError.
"""

from __future__ import annotations

import asyncio
import contextlib

from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.shared import Shared
from lightningstore.service.operations.attempts import Attempts
from lightningstore.service.operations.bulk import Bulk
from lightningstore.service.operations.claims import Claims
from lightningstore.service.operations.completions import Completions
from lightningstore.service.operations.consumers import ConsumerRecords
from lightningstore.service.operations.deletions import Deletions
from lightningstore.service.operations.enqueue import Enqueue
from lightningstore.service.operations.groups import RolloutGroups
from lightningstore.service.operations.imports import Imports
from lightningstore.service.operations.info import Info
from lightningstore.service.operations.ingest import SpanIngest
from lightningstore.service.operations.pauses import Pauses
from lightningstore.service.operations.pulls import Pulls
from lightningstore.service.operations.resources import ResourceVersions
from lightningstore.service.operations.retention import Removal
from lightningstore.service.operations.rollouts import Rollouts
from lightningstore.service.operations.samples import Samples
from lightningstore.service.operations.sequence_ids import SequenceIds
from lightningstore.service.operations.series import SeriesQueries
from lightningstore.service.operations.settings import NamespaceSettings
from lightningstore.service.operations.spans import SpanQueries
from lightningstore.service.operations.traces import Traces
from lightningstore.service.operations.triplets import Triplets
from lightningstore.service.operations.watchdog import Watchdog
from lightningstore.service.operations.workers import Workers
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.storage.base import Storage


class Store:
    """An open store. Created by `open_store`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        bulk = Bulk(engine)
        self.enqueue = Enqueue(engine, bulk)
        self.rollouts = Rollouts(engine, bulk, self.enqueue)
        self.claims = Claims(engine, self.enqueue)
        self.pauses = Pauses(engine)
        self.attempts = Attempts(engine)
        self.ingest = SpanIngest(engine)
        self.series = SeriesQueries(engine)
        self.sequence_ids = SequenceIds(engine)
        self.spans = SpanQueries(engine)
        traces = Traces(engine)
        self.triplets = Triplets(traces)
        self.samples = Samples(traces)
        self.completions = Completions(engine)
        self.groups = RolloutGroups(engine)
        self.consumers = ConsumerRecords(engine)
        self.pulls = Pulls(engine, self.consumers)
        self.resources = ResourceVersions(engine)
        self.workers = Workers(engine)
        self.imports = Imports(engine, self.ingest)
        self.info = Info(engine, self.pauses)
        self.deletions = Deletions(engine)
        self.removal = Removal(engine, self.deletions)
        self.watchdog = Watchdog(engine, bulk)
        self.settings = NamespaceSettings(engine)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, keep: Retention) -> None:
        """Start the watchdogs of deadlines and of the storage, and the retention."""
        self._tasks.append(asyncio.create_task(self.watchdog.run(), name="watchdog"))
        if self.engine.is_durable:  # memory stays, and no namespace in it is ever closed
            self._tasks.append(asyncio.create_task(self.engine.watch_storage(), name="storage"))
        self.deletions.sweep_soon()  # what a server that was killed had not swept yet
        self._tasks.append(asyncio.create_task(self.removal.run(keep), name="retention"))

    async def close(self) -> None:
        """Stop them, commit the accepted writes and close the storage. May be called twice."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self.deletions.close()
        await self.engine.close()
        self.ingest.close()


async def open_store(
    storage: Storage,
    clock: Clock,
    limits: Limits,
    keep: Retention,
    shared: Shared | None = None,
    namespace: str = DEFAULT_NAMESPACE,
) -> Store:
    """Open a store over a back end, with the limits and the retention of the server. Raises StorageUnusable.

    `shared` are the limits that apply to all stores of the process together; None: this is its only one.
    """
    engine = Engine(storage, clock, limits, shared, namespace)
    await engine.open()
    store = Store(engine)
    store.start(keep)
    return store
