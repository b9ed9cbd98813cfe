"""`lightningstore serve` with a measurement of how long its event loop is held.

Usage: `python -m benchmarks.watched [flags of serve]`. A timer of the loop fires every few
milliseconds. On SIGUSR1 it prints, as one line of JSON, the longest time between two firings since
the previous line: `cpu_ms` in processor time of the loop's thread, which excludes other processes
and waits for the disk, and `wall_ms` by the clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from lightningstore.service.cli.entry import main as run_cli
from lightningstore.service.server import tuning

BEAT_SECONDS = 0.003


class Monitor:
    """The beats of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._cpu, self._wall = time.thread_time(), time.perf_counter()
        self._longest_cpu = self._longest_wall = 0.0
        loop.add_signal_handler(signal.SIGUSR1, self._report)
        self._beat()

    def _beat(self) -> None:
        self._look()
        self._loop.call_later(BEAT_SECONDS, self._beat)

    def _look(self) -> None:
        cpu, wall = time.thread_time(), time.perf_counter()
        self._longest_cpu = max(self._longest_cpu, cpu - self._cpu)
        self._longest_wall = max(self._longest_wall, wall - self._wall)
        self._cpu, self._wall = cpu, wall

    def _report(self) -> None:
        self._look()
        found = {
            "cpu_ms": 1e3 * self._longest_cpu,
            "wall_ms": 1e3 * self._longest_wall,
            "peak_rss_mb": _peak_rss_bytes() / 1e6,
        }
        print(json.dumps(found), flush=True)
        self._longest_cpu = self._longest_wall = 0.0


def _peak_rss_bytes() -> int:
    """Return the most memory that was resident so far. getrusage would count what was here before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def main() -> None:
    """Serve until SIGTERM."""
    run = tuning.run

    async def watched(serving: Coroutine[Any, Any, None]) -> None:
        Monitor(asyncio.get_running_loop())
        await serving

    tuning.run = lambda serving: run(watched(serving))
    if (
        "RETENTION_LOOK_SECONDS" in os.environ
    ):  # a benchmark must not wait half a minute for the first look
        from lightningstore.service.operations import retention

        retention.LOOK_SECONDS = float(os.environ["RETENTION_LOOK_SECONDS"])
    sys.argv[1:] = ["serve", "--port", "0", "--log-level", "error", *sys.argv[1:]]
    run_cli()


if __name__ == "__main__":
    main()
