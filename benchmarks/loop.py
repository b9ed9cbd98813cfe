"""The closed loop of every load: callers that send the next request after each response.

Imports only the standard library, because it also runs in the peer's environment.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

Op = Callable[[int], Awaitable[int]]
#: Seconds of warm-up before a loop is measured.
WARM_UP = 0.3
#: Seconds after which the next contender has its turn.
SLICE = 0.5


class Exhausted(Exception):
    """There is nothing left to call with; the loop ends early and what was done counts."""


def percentile(values: list[float], share: float) -> float:
    """Return the value below which `share` of the sorted values lie."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else 0.0


async def drive(op: Op, callers: int, seconds: float) -> dict[str, Any]:
    """Let callers call for so long. Returns calls, items, seconds, and latencies in milliseconds."""
    latencies: list[float] = []
    items = 0
    started = perf_counter()
    until = started + seconds
    empty = False

    async def caller(number: int) -> None:
        nonlocal items, empty
        before = perf_counter()
        while before < until and not empty:
            try:
                done = await op(number)
            except Exhausted:
                empty = True
                return
            after = perf_counter()
            latencies.append(after - before)
            items += done
            before = after

    await asyncio.gather(*(caller(number) for number in range(callers)))
    return {"items": items, "seconds": perf_counter() - started, **summary(latencies)}


def summary(latencies: list[float]) -> dict[str, Any]:
    """Return the number of calls, and their latencies in milliseconds."""
    latencies.sort()
    return {
        "calls": len(latencies),
        "p50_ms": 1000 * percentile(latencies, 0.5),
        "p99_ms": 1000 * percentile(latencies, 0.99),
        "max_ms": 1000 * (latencies[-1] if latencies else 0.0),
    }


def cpu_seconds() -> float:
    """Return what this process has used of a core so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


class Stage:
    """Tells the parent when a measurement begins and what it gave, one JSON object a line."""

    async def loop(self, name: str, op: Op, callers: int, seconds: float) -> None:
        """Warm up, then drive for so long in slices, each at the parent's word."""
        await drive(op, callers, min(WARM_UP, seconds))
        for length in slices(seconds, SLICE):
            await self.measure(name, lambda length=length: drive(op, callers, length))

    async def measure(self, name: str, work: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        """Have the parent look at the server before and after the work."""
        print(json.dumps({"ready": name}), flush=True)
        if not sys.stdin.readline():
            sys.exit(1)  # the parent is gone
        before = cpu_seconds()
        found = await work()
        found["load_cpu_seconds"] = cpu_seconds() - before
        print(json.dumps({"name": name, **found}), flush=True)
        sys.stdin.readline()

    def fact(self, name: str, **facts: Any) -> None:
        """Report what the load found out by itself."""
        print(json.dumps({"name": name, **facts}), flush=True)


def slices(seconds: float, length: float) -> list[float]:
    """Return slices of about the same length that make up a duration in seconds, at least two."""
    count = max(2, round(seconds / length))
    return [seconds / count] * count
