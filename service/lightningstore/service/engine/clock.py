"""Injected time; the only module that reads the clock."""

from __future__ import annotations

import asyncio
import time
from functools import lru_cache
from pathlib import Path
from typing import Protocol

#: Seconds for which a long operation runs on the event loop before other tasks run.
TURN_SECONDS = 0.005
#: Minimum seconds for the other tasks. One iteration of the loop is not enough: grpc.aio accepts
#: one call in two iterations, so above a hundred calls a second they would wait for the end of the
#: operation.
REST_SECONDS = 0.002
#: A shorter pass of the event loop has run no task.
IDLE_PASS_SECONDS = 50e-6
#: This number of such passes in a row means that the loop has little to do. One is not enough: gRPC's thread takes tens of
#: microseconds to deliver the next event of a call.
IDLE_PASSES = 10


class Turn:
    """The time slice of a long operation on the event loop.

    After each item: `if turn.over(): await turn.next()`. Use it only where nothing that the
    operation has done is visible yet, and nothing that it has read must remain true.
    """

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until = time.perf_counter() + TURN_SECONDS

    def over(self) -> bool:
        """Return whether other tasks should run."""
        return time.perf_counter() >= self._until

    async def next(self) -> None:
        """Let other tasks run, and start the next slice."""
        await asyncio.sleep(REST_SECONDS)
        self._until = time.perf_counter() + TURN_SECONDS


async def until_idle(longest: float) -> None:
    """Let other tasks run until the loop has little to do, at most for `longest` seconds."""
    before = time.perf_counter()
    end, idle = before + longest, 0
    while idle < IDLE_PASSES and before < end:
        await asyncio.sleep(0)
        now = time.perf_counter()
        idle = idle + 1 if now - before < IDLE_PASS_SECONDS else 0
        before = now


@lru_cache(maxsize=1)
def _boot_id() -> str:
    """Return Linux's id of the current boot, "" on other systems."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Clock(Protocol):
    """The time functions that the store needs."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch, for timestamps and for stored deadlines."""

    def monotonic(self) -> float:
        """Return seconds that never jump, for intervals and for deadlines in memory."""

    def boot(self) -> tuple[str, int]:
        """Return the id of the current boot ("" if unknown) and the nanoseconds since then.

        Unlike `monotonic` it includes the time for which the machine sleeps, and is comparable
        between processes.
        """

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when the event is set or `monotonic` reaches `until` (None: only the event)."""


class SystemClock:
    """The machine's clocks."""

    def wall_ns(self) -> int:
        """Return nanoseconds since the Unix epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Return seconds that never jump."""
        return time.monotonic()

    def boot(self) -> tuple[str, int]:
        """Return the id of the current boot, and the nanoseconds since then."""
        boot_id = _boot_id()
        return boot_id, time.clock_gettime_ns(time.CLOCK_BOOTTIME) if boot_id else 0

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when the event is set or the time has come."""
        if until is None:
            await event.wait()
            return
        loop = asyncio.get_running_loop()
        # A plain timer, because wait_for would create a task in every iteration of the watchdog.
        timer = loop.call_later(max(0.0, until - time.monotonic()), event.set)
        try:
            await event.wait()
        finally:
            timer.cancel()
