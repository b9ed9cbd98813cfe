"""Time, injected: the only module that reads it."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """What the store needs to know of time."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch: for stamps and for deadlines on disk."""

    def monotonic(self) -> float:
        """Return seconds that never jump: for intervals and for deadlines in memory."""

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when the event is set or `monotonic` reaches `until` (None: the event alone)."""


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when the event is set or the time has come."""
        if until is None:
            await event.wait()
            return
        loop = asyncio.get_running_loop()
        # A plain timer: wait_for would make a task at every turn of the watchdog.
        timer = loop.call_later(max(0.0, until - time.monotonic()), event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()
