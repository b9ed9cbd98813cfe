"""Closes idle namespaces, and opens closed ones for their retention."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import Protocol

from lightningstore.service.engine.clock import Clock
from lightningstore.service.namespaces.space import Space, Use
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.rules.limits import Retention
from lightningstore.service.rules.settings import retention_of

logger = logging.getLogger(__name__)

#: Seconds without calls, waits and live records after which a namespace is closed.
IDLE_SECONDS = 600.0
#: Seconds between two looks for idle namespaces.
SWEEP_SECONDS = 60.0


class Namespaces(Protocol):
    """What is needed of the directory."""

    def spaces(self) -> list[Space]:
        """Return all namespaces."""

    def is_here(self, name: str) -> bool:
        """Return whether this server may open a namespace."""

    def use(self, space: Space) -> Use:
        """Return a context in which the store of a namespace is open."""

    def close_if_unused(self, space: Space) -> None:
        """Close the store of a namespace in which nothing happens."""


class IdleSweep:
    """Looks for idle namespaces now and then."""

    def __init__(self, namespaces: Namespaces, clock: Clock, keep: Retention) -> None:
        """Take the directory, the clock, and the retention of the server."""
        self._namespaces = namespaces
        self._clock = clock
        self._keep = keep

    async def run(self) -> None:
        """Look for idle namespaces every SWEEP_SECONDS, until cancelled."""
        while True:
            await self._clock.wait(asyncio.Event(), self._clock.monotonic() + SWEEP_SECONDS)
            try:
                await self.sweep()
            except Exception:
                logger.exception("idle namespaces could not be closed; the next look tries again")

    async def sweep(self) -> None:
        """Close the namespaces that are idle, and remove what closed ones keep too long."""
        now, wall_ns = self._clock.monotonic(), self._clock.wall_ns()
        for space in self._namespaces.spaces():
            if space.store is None:
                if 0 < space.wake_ns <= wall_ns and self._namespaces.is_here(space.name):
                    await self._retain(space)
            elif space.in_use:
                space.touch()
            elif now - space.quiet_since >= IDLE_SECONDS:
                self._namespaces.close_if_unused(space)

    async def _retain(self, space: Space) -> None:
        """Open a namespace for its retention, and close it again."""
        space.wake_ns = 0  # if it cannot be opened, the next call tries again
        with contextlib.suppress(StoreError):
            async with self._namespaces.use(space) as store:
                await store.removal.retain(retention_of(space.settings, self._keep))
            self._namespaces.close_if_unused(space)
