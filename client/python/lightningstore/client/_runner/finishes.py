"""Tells a runner within a second that a rollout it works on has finished: cancelled, for instance.

Heartbeats say which attempts to stop, but go out every ten seconds. More of them would cost the server a call a
second for each worker. So one WaitForRollouts stream, on which nothing is sent until something happens, covers
the rollouts that the runner works on. Rollouts shorter than DELAY never cause a call. A stream is replaced when
a rollout that it does not cover gets older than DELAY, and then covers all of them, so a runner opens at most
one stream every DELAY seconds.

gRPC may crash the child of a fork that happens during a call. Functions fork, so the stream is closed before each
fork and opened again in the parent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import weakref
from collections.abc import Callable

from lightningstore.client._sync.store import LightningStore
from lightningstore.client._sync.streams import WaitStream
from lightningstore.client.errors import CancelledCallError, LightningStoreError
from lightningstore.client.values import Rollout

logger = logging.getLogger(__name__)

#: Seconds after a claim until its rollout is watched. A finish before that is noticed then.
DELAY = 0.5
#: Seconds without a stream after one has failed for good. Heartbeats still say what to stop.
PAUSE = 10.0
#: Seconds that a fork waits for the stream to end.
FORK_WAIT = 1.0

_watches: weakref.WeakSet[Finishes] = weakref.WeakSet()


class Finishes:
    """Watches the rollouts of a runner. Its methods are called on the runner's event loop."""

    def __init__(self, store: LightningStore, on_finish: Callable[[str], object]) -> None:
        """Watch nothing yet. `on_finish` is called in a thread, with the id of a finished rollout."""
        self._store = store
        self._on_finish = on_finish
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        # When each attempt is old enough to be watched, and which attempts the stream covers.
        self._due: dict[tuple[str, str], float] = {}
        self._covered: set[tuple[str, str]] = set()
        self._changed = threading.Condition()
        self._next: list[str] = []
        self._stream: WaitStream | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._reading: list[str] = []
        self._forks = 0
        _watches.add(self)

    def add(self, rollout: Rollout) -> None:
        """Watch a claimed rollout from DELAY seconds on."""
        self._loop = asyncio.get_running_loop()
        self._due[rollout.rollout_id, rollout.attempt.attempt_id] = self._loop.time() + DELAY
        if self._timer is None:
            self._timer = self._loop.call_later(DELAY, self._look)

    def remove(self, rollout_id: str, attempt_id: str) -> None:
        """Watch an attempt no longer. The stream goes on if it covers others."""
        key = (rollout_id, attempt_id)
        self._due.pop(key, None)
        if key in self._covered:
            self._covered.discard(key)
            if not self._covered:
                self._replace([])

    def stop(self) -> None:
        """End the stream and its thread."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
        self._replace([])

    def _look(self) -> None:
        """Open a stream if a rollout without one is old enough; else look again when it is."""
        assert self._loop is not None  # noqa: S101
        self._timer = None
        uncovered = [due for key, due in self._due.items() if key not in self._covered]
        if not uncovered or self._stopped:
            return
        wait = min(uncovered) - self._loop.time()
        if wait > 0:
            self._timer = self._loop.call_later(wait, self._look)
            return
        self._covered = set(self._due)
        self._replace(list(dict.fromkeys(rollout_id for rollout_id, _ in self._due)))

    def _replace(self, rollout_ids: list[str]) -> None:
        """Close the stream, and let the thread open one for these rollouts, if there are any."""
        with self._changed:
            self._next = rollout_ids
            stream, self._stream = self._stream, None
            if rollout_ids and self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="lightningstore-finishes", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()
        if stream is not None:
            stream.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._reading = []
                self._changed.notify_all()
                self._changed.wait_for(lambda: (self._next and not self._forks) or self._stopped)
                if self._stopped:
                    return
                self._reading, self._next = self._next, []
                stream = self._stream = self._store.wait_for_rollouts(self._reading)
            try:
                for rollout in stream:
                    self._on_finish(rollout.rollout_id)
            except CancelledCallError:
                continue  # replaced
            except Exception as error:
                expected = isinstance(error, LightningStoreError)
                logger.debug(
                    "finishes are not watched for %g s: %s",
                    PAUSE,
                    error,
                    exc_info=None if expected else error,
                )
                self._pause(stream)

    def before_fork(self) -> None:
        """Close the stream, and open none until `after_fork`."""
        with self._changed:
            self._forks += 1
            if not self._reading:
                return
            self._next = self._next or self._reading
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
        with self._changed:
            self._changed.wait_for(lambda: not self._reading, FORK_WAIT)

    def after_fork(self) -> None:
        """Open the stream again, in the parent."""
        with self._changed:
            self._forks = max(self._forks - 1, 0)
            self._changed.notify_all()

    def _pause(self, failed: WaitStream) -> None:
        loop = self._loop
        try:
            if loop is not None:
                loop.call_soon_threadsafe(self._watch_later, failed)
        except RuntimeError:  # the loop has ended
            return

    def _watch_later(self, failed: WaitStream) -> None:
        if self._stream is not failed or self._loop is None:
            return  # replaced since
        self._covered.clear()
        due = self._loop.time() + PAUSE
        self._due = dict.fromkeys(self._due, due)
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._look)


def _before_fork() -> None:
    for watch in list(_watches):
        watch.before_fork()


def _after_fork() -> None:
    for watch in list(_watches):
        watch.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork)
