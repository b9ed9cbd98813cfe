"""Compare the adapter of agentlightning with that package's own store.

Usage: `.venv-agl/bin/python -m benchmarks.agl`. The same load (`agl_load.py`) runs against both
stores in turns, each time with a fresh server. Prints a table in Markdown. On a busy machine CPU
time is more reliable than rates; it is that of the load, including its runners, and that of the
server.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import contenders

BIN = Path(sys.executable).parent
MICRO = {"jobs": 2048, "processes": 32}
#: The arguments of agentlightning's scenarios, with fewer rollouts and runners; those of its micro benchmarks,
#: with fewer processes and jobs.
WORKLOADS: dict[str, dict[str, Any]] = {
    "minimal": {"total": 256, "batch": 256, "runners": 16, "rounds": 6, "sleep": 0.5},
    "medium": {"total": 500, "batch": 500, "runners": 24, "rounds": 10, "sleep": 0.1},
    "worker": MICRO,
    "dequeue-empty": MICRO,
    "rollout": MICRO,
    "dequeue-only": MICRO,
    "dequeue-update-attempt": MICRO,
}
KINDS = ("peer", "memory", "sqlite")


class Run(NamedTuple):
    """What one load said, of each of its rollouts or jobs."""

    rate: float
    client_ms: float
    server_ms: float

    @property
    def cpu_ms(self) -> float:
        """CPU of both sides."""
        return self.client_ms + self.server_ms


def _run(kind: str, workload: str, sizes: dict[str, Any], folder: Path) -> Run:
    with contenders.serve(kind, folder, peer_bin=BIN) as server:
        before = server.cpu_seconds()
        done = subprocess.run(
            [
                *(sys.executable, "-m", "benchmarks.agl_load"),
                *("peer" if kind == "peer" else "ours", server.address, workload),
                json.dumps(sizes),
            ],
            env=contenders.environment(LITELLM_LOCAL_MODEL_COST_MAP="True", AGENTOPS_API_KEY=""),
            capture_output=True,
            text=True,
            check=False,
        )
        served = server.cpu_seconds() - before
    if done.returncode:
        raise contenders.Failed(f"{workload} on {kind}:\n{done.stderr[-2000:]}")
    said = json.loads(done.stdout.splitlines()[-1])
    each = 1000 / said["count"]
    return Run(said["count"] / said["seconds"], said["cpu"] * each, served * each)


def _row(workload: str, runs: dict[str, list[Run]]) -> str:
    def middle(kind: str, field: str) -> float:
        return statistics.median(getattr(run, field) for run in runs[kind])

    cells = [workload]
    for kind in KINDS:
        parts = (middle(kind, field) for field in ("rate", "client_ms", "server_ms"))
        cells.append("{:.1f} /s, {:.1f} + {:.1f} ms".format(*parts))
    for kind in KINDS[1:]:
        rate = middle(kind, "rate") / middle("peer", "rate")
        cpu = middle("peer", "cpu_ms") / middle(kind, "cpu_ms")
        cells.append(f"{rate:.2f} ×, CPU {cpu:.2f} ×")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Run the selected workloads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agl", description=__doc__)
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--reps", type=int, default=3, help="repetitions, default 3")
    given = parser.parse_args()
    print(
        "| workload | agentlightning's own | ours, memory | ours, SQLite | memory ÷ own | SQLite ÷ own |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    build = contenders.ROOT / "build"
    build.mkdir(exist_ok=True)
    for workload in given.workload:
        runs: dict[str, list[Run]] = {kind: [] for kind in KINDS}
        with tempfile.TemporaryDirectory(prefix="agl-", dir=build) as folder:
            for _ in range(given.reps):
                for kind in KINDS:
                    runs[kind].append(_run(kind, workload, WORKLOADS[workload], Path(folder)))
        print(_row(workload, runs), flush=True)
    print(f"\nload averages at the end: {os.getloadavg()}", file=sys.stderr)


if __name__ == "__main__":
    main()
