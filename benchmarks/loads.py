"""Starts load generators, each a process, and runs them one at a time.

A load generator reports when it is ready for its next measurement and waits for the start. Several
servers are thus measured in slices, in turn, so that other work on the machine affects all of them
equally.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from typing import Any

import psutil

from benchmarks import contenders
from benchmarks.contenders import Failed, Server

#: What the parts of a workload gave, by name.
Trial = dict[str, dict[str, Any]]
SUMS = ("items", "calls", "seconds", "load_cpu_seconds", "cpu_seconds", "other_cpu_seconds")


class Load:
    """A workload against one contender."""

    def __init__(self, server: Server, job: dict[str, Any]) -> None:
        peer = bool(job.get("peer"))
        python = contenders.PEER_VENV / "bin" / "python" if peer else sys.executable
        more = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"} if peer else {}
        self._server = server
        self._slices: dict[str, list[dict[str, Any]]] = {}
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.load", json.dumps({**job, "address": server.address})],
            cwd=contenders.ROOT,
            env=contenders.environment(**more),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if peer else None,
            text=True,
        )

    def prepare(self) -> bool:
        """Let it prepare its next measurement; returns whether there is one."""
        while (line := self._read()) is not None:
            if "ready" in line:
                return True
            self._slices.setdefault(line.pop("name"), []).append(line)
        if self._process.wait() != 0 or not self._slices:
            raise Failed(f"the load ended with {self._process.returncode}")
        return False

    def measure(self) -> None:
        """Let it do what it prepared, and look at the server before and after.

        Beside what the load saw: `cpu_seconds` and `rss_bytes` (grown by `rss_grown_bytes`) of the server,
        and `other_cpu_seconds`, what the rest of the machine did: figures are fair where it is small.
        """
        server = self._server
        cpu, rss, busy = server.cpu_seconds(), server.rss_bytes(), _busy_seconds()
        self._go_on()
        found = self._read()
        if found is None:
            raise Failed(f"the load ended with {self._process.wait()}")
        found["cpu_seconds"] = server.cpu_seconds() - cpu
        ours = found["cpu_seconds"] + found["load_cpu_seconds"]
        found["other_cpu_seconds"] = max(0.0, _busy_seconds() - busy - ours)
        found["rss_bytes"] = server.rss_bytes()
        found["rss_grown_bytes"] = found["rss_bytes"] - rss
        self._slices.setdefault(found.pop("name"), []).append(found)

    def go_on(self) -> None:
        """Let it go on to its next preparation."""
        self._go_on()

    def trial(self) -> Trial:
        """Return what all slices of each part gave together."""
        return {name: _together(found) for name, found in self._slices.items()}

    def end(self) -> None:
        """End it, whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        return None


def run(pairs: list[tuple[Server, dict[str, Any]]]) -> list[Trial]:
    """Run a workload against contenders that run, in turn slice by slice; returns what each gave."""
    loads: list[Load] = []
    try:
        left = []
        for server, job in pairs:
            load = Load(server, job)
            loads.append(load)
            if load.prepare():
                left.append(load)
        while left:
            for load in list(left):
                load.measure()
                load.go_on()
                if not load.prepare():
                    left.remove(load)
        return [load.trial() for load in loads]
    finally:
        for load in loads:
            load.end()


def _together(slices: list[dict[str, Any]]) -> dict[str, Any]:
    """Return slices as one part: sums; medians of the slices' latencies; the last of what else there is."""
    whole = [part for part in slices if part.get("calls")] or slices
    found = dict(whole[-1])
    for key in found:
        if key in SUMS:
            found[key] = sum(part[key] for part in whole)
        elif key.endswith("_ms"):
            found[key] = statistics.median(part[key] for part in whole)
    return found


def _busy_seconds() -> float:
    """Return what all processes have used of all cores."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
