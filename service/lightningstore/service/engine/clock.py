"""Time, injected: the only module that reads it."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from pathlib import Path
from typing import Protocol

#: How long an operation over many items keeps the event loop before others get a turn. Seconds.
TURN_SECONDS = 0.005
#: How long others then have it, at least. One round of the loop is not enough: grpc.aio takes up one call in two
#: rounds, so calls would wait for the end of the operation where more than a hundred a second come.
REST_SECONDS = 0.002


class Turn:
    """The turn that an operation over many items has on the event loop.

    After each item: `if turn.over(): await turn.next()`. Only where nothing that the operation has done so
    far can be seen, and nothing that it has read has to stay true.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.perf_counter() + TURN_SECONDS

    def over(self) -> bool:
        """Tell whether others should have the loop."""
        return time.perf_counter() >= self._until

    async def next(self) -> None:
        """Let others have the loop, and begin the next turn."""
        await asyncio.sleep(REST_SECONDS)
        self._until = time.perf_counter() + TURN_SECONDS


@lru_cache(maxsize=1)
def _boot_id() -> str:
    """Return Linux's name of the present boot, "" on other systems."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Clock(Protocol):
    """What the store needs to know of time."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch: for stamps and for deadlines on disk."""

    def monotonic(self) -> float:
        """Return seconds that never jump: for intervals and for deadlines in memory."""

    def boot(self) -> tuple[str, int]:
        """Return which boot of which machine this is, and the nanoseconds since; "" where nobody knows.

        Unlike `monotonic` it counts on while a machine sleeps, and means the same in the next process.
        """

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

    def boot(self) -> tuple[str, int]:
        """Return which boot this is, and the nanoseconds since."""
        boot_id = _boot_id()
        return boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME) if boot_id else 0

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
