"""Sends a health check and a heartbeat 50 times a second: `python -m benchmarks.prober HOST:PORT`.

A health check waits only for the event loop, a heartbeat also for a commit. For each line on stdin
it prints one line of JSON with the longest response time of both since the previous line, including
probes that are still waiting. Probes are sent on time, whether or not earlier ones were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from time import perf_counter

import uvloop
from lightningstore.v1.worker_pb2 import HeartbeatRequest

from benchmarks import wire
from benchmarks.grpc_client import PATH

EVERY_SECONDS = 0.02
PROBES = {
    "gap_ms": (b"/grpc.health.v1.Health/Check", b""),
    "write_gap_ms": (
        f"{PATH}Heartbeat".encode(),
        HeartbeatRequest(worker_id="prober").SerializeToString(),
    ),
}


class Prober:
    """What the probes of one server found."""

    def __init__(self) -> None:
        self._waiting: dict[object, tuple[str, float]] = {}
        self._longest = dict.fromkeys(PROBES, 0.0)
        self._failed = 0

    async def run(self, address: str) -> None:
        """Probe until cancelled."""
        connection = await wire.connect(address)
        due = perf_counter()
        while True:
            due = max(due + EVERY_SECONDS, perf_counter())
            await asyncio.sleep(due - perf_counter())
            for name, (path, request) in PROBES.items():
                probe = connection.call(path, request)
                self._waiting[probe] = name, perf_counter()
                probe.add_done_callback(self._answered)

    def _answered(self, probe: asyncio.Future[bytes]) -> None:
        name, sent = self._waiting.pop(probe)
        self._longest[name] = max(self._longest[name], perf_counter() - sent)
        self._failed += probe.exception() is not None

    def report(self) -> dict[str, float]:
        """Return what was found since the last report."""
        now = perf_counter()
        for name, sent in self._waiting.values():
            self._longest[name] = max(self._longest[name], now - sent)
        found: dict[str, float] = {name: 1e3 * longest for name, longest in self._longest.items()}
        found["failed"] = self._failed
        self._longest, self._failed = dict.fromkeys(PROBES, 0.0), 0
        return found


async def main() -> None:
    """Probe until stdin ends."""
    prober, reader = Prober(), asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    probing = asyncio.create_task(prober.run(sys.argv[1]))
    while await reader.readline():
        print(json.dumps(prober.report()), flush=True)
    probing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await probing


if __name__ == "__main__":
    uvloop.run(main())
