"""Opens a store, and loads it again after its storage has failed."""

from __future__ import annotations

import asyncio
import logging

from lightningstore.service import lifecycle
from lightningstore.service.errors import DataFileLost, StorageFailed
from lightningstore.service.state import Entry, State
from lightningstore.service.storage.base import Changes, RequestRow, Snapshot
from lightningstore.service.store.core import Core
from lightningstore.service.store.requests import Requests
from lightningstore.service.store_time import StoreTime
from lightningstore.service.timers import Timers
from lightningstore.service.workforce import Workforce

logger = logging.getLogger(__name__)

RECOVERY_PAUSE = 0.5
#: A storage that stays unusable is logged at the 1st, 2nd, 4th, 8th … try, and then every so many tries: a minute.
LOGGED_TRIES = 120
#: The storage is usable again when it takes as much as what it failed with, or this.
PROBE_BYTES = 1 << 20
#: Seconds between two looks for the data file.
FILE_SECONDS = 0.4
#: Rollouts that are taken over before others get the event loop.
ADOPTED_AT_ONCE = 1000


class RecoveryOperations(Core):
    """Not a call: how a store comes to life, and back to it."""

    async def open(self) -> None:
        """Load what is live. Raises StorageUnusable."""
        await self._adopt(await self.storage.open())
        self.committer.start()

    async def _adopt(self, snapshot: Snapshot) -> None:
        """Replace what is in memory. Nobody may decide anything meanwhile: the store is new, or has failed."""
        self.store_id = snapshot.store_id
        state = self.state = State(snapshot.counters)
        self.time = StoreTime(self.clock, snapshot.counters)
        self.deadlines, self.delays = Timers(), Timers()
        self.workforce = Workforce(snapshot.workers)
        self.requests = Requests(snapshot.requests, self.clock.monotonic())
        self._completions.clear()
        self.waiters.published = snapshot.counters.completion_number
        for resources_id, version, update in snapshot.resources:
            state.resources[resources_id] = (version, update)
        state.latest_resources_id = max(
            state.resources, key=lambda i: state.resources[i][1], default=""
        )
        entries: list[Entry] = []
        for i, loaded in enumerate(snapshot.live, 1):
            entries.append(state.install(loaded))
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        attempts = [a for e in entries for a in e.attempts.values() if lifecycle.is_live(a.record)]
        attempts.sort(key=lambda attempt: attempt.key)
        for i, attempt in enumerate(attempts, 1):
            self._started_at(attempt)
            attempt.heard_at = self.clock.monotonic()  # a fresh interval after every restart
            self.arm(attempt)
            self.workforce.resume(attempt)
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        for i, entry in enumerate(entries, 1):
            if entry.position:
                self._queue(entry)
            if i % ADOPTED_AT_ONCE == 0:
                await asyncio.sleep(0)
        self.earlier.set()

    async def _recover(self) -> bool:
        """Drop what is in memory and load it again, as often as it takes; False if the store closes."""
        error = self.committer.failure or StorageFailed("unknown")
        self.on_usable(False)
        self.waiters.fail(error)
        self.end_polls(error)
        tries = 0
        lost = isinstance(error, DataFileLost)
        if lost:
            await self.storage.secure()
        while not self._closing:
            try:
                if lost:  # closed, a file that has no name any more would be gone
                    self.storage.check_place(log=False)
                await self.storage.close()
                lost = False
                await self._adopt(await self.storage.open())
                await self._probe(min(self.committer.pending_bytes, PROBE_BYTES))
            except Exception as failure:
                tries += 1
                _log_try(tries, failure)
                await self.clock.wait(asyncio.Event(), self.clock.monotonic() + RECOVERY_PAUSE)
            else:
                logger.info("the storage is usable again, after %d failed tries", tries)
                self.on_usable(True)
                return True
        return False

    async def _probe(self, size: int) -> None:
        """Write about what has failed and remove it: on a full disk opening and small writes may work."""
        probe = RequestRow("", "probe", 0, bytes(size), -2)
        await self.storage.commit(Changes(requests=[probe], size=size))
        await self.storage.commit(Changes(forget_requests_before_ns=-1))


async def watch_file(store: RecoveryOperations) -> None:
    """Stop a store from answering once its file is no longer where it was opened, until cancelled.

    By the machine's own time: it is about the file, and about no rule of the store.
    """
    while True:
        await asyncio.sleep(FILE_SECONDS)
        if store.committer.failure is None:
            try:
                store.storage.check_place()
            except DataFileLost as error:
                store.committer.fail(error)


def _log_try(tries: int, failure: Exception) -> None:
    """Log a failed try to recover: the first with its traceback, the others seldom."""
    if tries == 1:
        logger.error(
            "the storage is still unusable; trying again every %s s",
            RECOVERY_PAUSE,
            exc_info=None if isinstance(failure, DataFileLost) else failure,  # that was logged
        )
    elif tries & (tries - 1) == 0 or tries % LOGGED_TRIES == 0:
        logger.error("the storage is still unusable after %d tries: %s", tries, failure)
