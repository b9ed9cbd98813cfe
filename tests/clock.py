"""A clock that tests move."""

from __future__ import annotations

import asyncio

from lightningstore.service.engine import clock

#: Whoever moves the clock waits for rounds of the loop until all is done, and for no real time.
clock.REST_SECONDS = 0

START_NS = 1_767_225_600_000_000_000  # 2026-01-01 00:00:00 UTC


class ManualClock:
    """A manual clock: waiting tasks wake exactly at their time."""

    def __init__(self) -> None:
        self._wall_ns = START_NS
        self._monotonic = 1000.0
        self.boot_id = "this boot"
        self._sleepers: dict[object, tuple[float, asyncio.Event]] = {}

    def wall_ns(self) -> int:
        return self._wall_ns

    def monotonic(self) -> float:
        return self._monotonic

    def boot(self) -> tuple[str, int]:
        return self.boot_id, int(self._monotonic * 1e9)

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        if until is None:
            await event.wait()
            return
        if until <= self._monotonic:
            await asyncio.sleep(0)
            event.set()
            return
        token = object()
        self._sleepers[token] = (until, event)
        try:
            await event.wait()
        finally:
            del self._sleepers[token]

    async def advance(self, seconds: float) -> None:
        """Let time pass, stopping wherever somebody wants to be woken."""
        target = self._monotonic + seconds
        await self._settle()
        while True:
            due = [place for place in self._sleepers.values() if place[0] <= target]
            if not due:
                break
            moment = min(due, key=lambda place: place[0])[0]
            self._move(moment - self._monotonic)
            for until, event in list(self._sleepers.values()):
                if until <= moment:
                    event.set()
            await self._settle()
        self._move(target - self._monotonic)
        await self._settle()

    async def until_asleep(self, seconds: float) -> None:
        """Return once somebody waits for a time that many seconds ahead: a server may take its time to get there."""
        target = self._monotonic + seconds
        while not any(abs(until - target) < 1e-6 for until, _ in self._sleepers.values()):
            await asyncio.sleep(0.001)

    def jump(self, seconds: float) -> None:
        """Let time pass while the server is down."""
        self._move(seconds)

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock, as an administrator or NTP does."""
        self._wall_ns += int(seconds * 1e9)

    async def stall(self, seconds: float) -> None:
        """Let time pass while the process is stalled; due tasks wake late."""
        self._move(seconds)
        for until, event in list(self._sleepers.values()):
            if until <= self._monotonic:
                event.set()
        await self._settle()

    def _move(self, seconds: float) -> None:
        if seconds > 0:
            self._monotonic += seconds
            self._wall_ns += round(seconds * 1e9)

    async def _settle(self) -> None:
        for _ in range(6):
            await asyncio.sleep(0)
