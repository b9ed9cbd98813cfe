"""Heartbeats of a runner, in a separate thread, so that busy or stuck functions do not delay them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightningstore.client._sync.store import LightningStore
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.values import Rollout, Stop

logger = logging.getLogger(__name__)

#: Maximum attempts in one call. The server's limit is 10,000 by default, and may be lower.
ATTEMPTS_PER_CALL = 1_000
#: Heartbeats within an unresponsive timeout: one or two may be lost.
BEATS_PER_TIMEOUT = 3
#: Minimum seconds between heartbeats.
MIN_PERIOD = 0.05
#: Seconds between two tries while the server does not answer.
RETRY_PERIOD = 1.0


class Heartbeats:
    """Sends the heartbeats of a worker and the attempts that it works on."""

    def __init__(
        self,
        store: LightningStore,
        worker_id: str,
        *,
        period: float,
        on_stop: Callable[[Stop], object],
        stats: Callable[[], Mapping[str, Any]],
        publish_number: Callable[[], int | None],
    ) -> None:
        """Prepare the thread. `period`: maximum seconds between heartbeats."""
        self._store = store
        self._worker_id = worker_id
        self._period = period
        self._on_stop = on_stop
        self._stats = stats
        self._publish_number = publish_number
        self._changed = threading.Condition()
        self._attempts: dict[tuple[str, str], float] = {}
        self._ended = False
        self._hurried = False
        self._failing = False
        self._thread = threading.Thread(
            target=self._run, name="lightningstore-heartbeats", daemon=True
        )

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more heartbeats. One in progress ends by itself."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def hurry(self) -> None:
        """Send the next heartbeat now, because its response explains what has happened."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def add(self, rollout: Rollout) -> None:
        """Include a claim. A short unresponsive timeout shortens the period."""
        timeout = rollout.config.unresponsive_timeout
        period = self._period
        if timeout is not None:
            period = max(min(period, timeout / BEATS_PER_TIMEOUT), MIN_PERIOD)
        with self._changed:
            self._attempts[rollout.rollout_id, rollout.attempt.attempt_id] = period
            self._changed.notify_all()

    def remove(self, rollout_id: str, attempt_id: str) -> None:
        """Include an attempt no longer."""
        with self._changed:
            self._attempts.pop((rollout_id, attempt_id), None)

    def _interval(self) -> float:
        return min(self._attempts.values(), default=self._period)

    def _run(self) -> None:
        last = 0.0
        while True:
            with self._changed:
                while not self._ended and not self._hurried:
                    remaining = last + self._interval() - time.monotonic()
                    if remaining <= 0:
                        break
                    self._changed.wait(remaining)
                if self._ended:
                    return
                self._hurried = False
                attempts = list(self._attempts)
                interval = self._interval()
            last = time.monotonic()
            if not self._beat(attempts, interval):
                # The next one is due earlier than after a success.
                last = time.monotonic() - interval + min(interval, RETRY_PERIOD)

    def _beat(self, attempts: list[tuple[str, str]], interval: float) -> bool:
        """Send one heartbeat. Return whether it succeeded.

        No failure ends the thread: the server may come back, and without heartbeats the attempts of a healthy worker
        expire.
        """
        try:
            store = self._store.with_timeout(max(interval, RETRY_PERIOD))
            stats, number = self._stats(), self._publish_number()
            stops: list[Stop] = []
            for first in range(0, max(len(attempts), 1), ATTEMPTS_PER_CALL):
                part = attempts[first : first + ATTEMPTS_PER_CALL]
                reply = store.heartbeat(
                    self._worker_id, stats=stats, attempts=part, publish_number=number
                )
                stops += reply.stops
        except Exception as error:
            if not self._failing and not self._ended:
                expected = isinstance(error, LightningStoreError)
                logger.warning(
                    "heartbeats fail, the runner keeps trying: %s",
                    error,
                    exc_info=None if expected else error,
                )
            self._failing = True
            return False
        if self._failing:
            logger.warning("heartbeats succeed again")
            self._failing = False
        for stop in stops:
            try:
                self._on_stop(stop)
            except Exception:
                logger.exception("%s could not be handled", stop)
        return True
