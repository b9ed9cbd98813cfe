"""Claims of a runner: long polls that lose no claim when the server, the network or the runner fails."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

from lightningstore.client._calls import control as calls
from lightningstore.client._calls.call import Call
from lightningstore.client._sync.store import LightningStore
from lightningstore.client._transport.forks import Ticket, gate
from lightningstore.client._transport.protocols import PendingCall
from lightningstore.client._transport.retries import FIRST_DELAY, MAX_DELAY
from lightningstore.client.errors import (
    CancelledCallError,
    DeadlineExceededError,
    LightningStoreError,
    UnavailableError,
)
from lightningstore.client.values import Rollout

logger = logging.getLogger(__name__)

#: Maximum rollouts claimed by one call.
MAX_CLAIMS = 1_000
#: Seconds after the end of the wait at which a long poll is cancelled and repeated.
MARGIN = 10.0
#: Deadline in seconds of the call that asks, at a stop, what a cancelled poll had claimed, and its tries.
LAST_ANSWER = 0.6
LAST_TRIES = 3


class Claims:
    """Claims rollouts for a worker.

    The request id of a call finds claims whose response was lost. Therefore the same call is repeated until it is
    answered.
    """

    def __init__(
        self,
        store: LightningStore,
        worker_id: str,
        modes: tuple[Any, ...],
        wait: float,
        queues: list[str],
    ) -> None:
        """Claim rollouts of some modes and task queues for a worker. `wait`: seconds of a long poll."""
        self._store = store
        self._worker_id = worker_id
        self._modes = modes
        self._queues = queues
        self._wait = wait
        self._lock = threading.Lock()
        self._pending: PendingCall | None = None
        self._ticket: Ticket | None = None
        self._open: Call[list[Rollout]] | None = None
        self._stopped = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    @property
    def modes(self) -> str:
        """The modes that are claimed, in words."""
        words = ["none" if mode is None else getattr(mode, "value", mode) for mode in self._modes]
        return ", ".join(map(str, words)) or "any"

    @property
    def queues(self) -> str:
        """The task queues that are claimed from, in words. Empty for the default queue alone."""
        return ", ".join(name or "default" for name in self._queues)

    def stop(self) -> None:
        """End the poll in progress. From any thread."""
        with self._lock:
            self._stopped = True
            pending, loop = self._pending, self._loop
        if pending is not None:
            pending.cancel()
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._woken.set)

    async def claim(self, limit: int) -> list[Rollout]:
        """Return up to `limit` claims. Empty at the end of the wait, and after `stop`.

        Raises LightningStoreError for an error that is not retryable. After any other exception, also a cancelled task,
        `rescue` returns what may have been claimed nevertheless.
        """
        self._loop = asyncio.get_running_loop()
        limit = min(limit, MAX_CLAIMS)
        call = calls.dequeue_rollouts(
            limit, self._modes, self._worker_id, self._wait, None, self._queues
        )
        delay = FIRST_DELAY
        while not self._stopped:
            try:
                self._open = call
                return self._settled(await self._ask(call, self._wait + MARGIN))
            except CancelledCallError:
                forked = self._ticket is not None and self._ticket.is_cancelled
                if not self._stopped and not forked:
                    raise
            except LightningStoreError as error:
                if not is_retryable(error):
                    raise
                if delay == FIRST_DELAY:
                    logger.warning("claims fail, the runner keeps trying: %s", error)
                await self._pause(max(delay, error.retry_delay or 0.0))
                delay = min(delay * 2, MAX_DELAY)
        return await self.rescue()

    async def rescue(self) -> list[Rollout]:
        """Return what a cancelled poll had claimed."""
        call = self._open
        if call is None:
            return []
        failure: LightningStoreError | None = None
        for _ in range(LAST_TRIES):
            try:
                return self._settled(await self._ask(call, LAST_ANSWER))
            except LightningStoreError as error:
                failure = error
                await asyncio.sleep(FIRST_DELAY)
        logger.warning("stopping; it is unknown what the last poll claimed: %s", failure)
        return []

    def _settled(self, answer: Any) -> list[Rollout]:
        call, self._open = self._open, None
        return [] if call is None else call.shape(answer)

    async def _ask(self, call: Call[Any], timeout: float) -> Any:
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        pending, self._ticket = gate.begin(
            lambda: self._store._transport.begin(call.method, call.request, timeout),
            may_cancel=True,
        )
        with self._lock:
            self._pending = pending
            stopped = self._stopped and timeout != LAST_ANSWER
        if stopped:  # since the call started
            pending.cancel()
        pending.when_done(lambda: _set(loop, done))
        try:
            await done.wait()
        except asyncio.CancelledError:
            pending.cancel()
            raise
        finally:
            with self._lock:
                self._pending = None
        return pending.result()

    async def _pause(self, seconds: float) -> None:
        try:
            # Not `wait_for`: in Python 3.11 it ignores a cancellation as the wait ends.
            async with asyncio.timeout(seconds):
                await self._woken.wait()
        except TimeoutError:
            return


def _set(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(event.set)


def is_retryable(error: LightningStoreError) -> bool:
    """Tell whether a call may succeed later: the server is away, or has named a delay."""
    return (
        isinstance(error, UnavailableError | DeadlineExceededError) or error.retry_delay is not None
    )
