"""Rows 9, 11 and 14: a store with a long past, and a store without a network."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import contenders
from benchmarks.bench import Bench, Trial, rate

SMALL_FINISHED, SMALL_RUNNING = 30_000, 100
SETTLE_SECONDS = 1.0
#: A call of row 9 is measured for so long; there are 17 of them.
HISTORY_SECONDS = 0.5


def _fill(path: Path, finished: int, running: int) -> None:
    command = [sys.executable, "-m", "benchmarks.history", str(path), str(finished), str(running)]
    subprocess.run(command, check=True, cwd=contenders.ROOT, env=contenders.environment())


def _past(bench: Bench) -> Path:
    def make() -> Path:
        path = Path(tempfile.mkdtemp(dir=bench.folder)) / "past.db"
        bench.say(f"filling a file with {bench.finished:,} finished rollouts")
        _fill(path, bench.finished, 0)
        return path

    found: Path = bench.shared("past", make)
    return found


def start(bench: Bench) -> None:
    """Row 11: resident memory and seconds to the first answer with a million finished rollouts, none live.

    From the start of the process, Python's imports included, with the file in the page cache. Comes before
    row 9, which adds live ones to the same file.
    """
    path, memory, seconds = _past(bench), [], []
    for _ in range(bench.repetitions):
        with contenders.serve("sqlite", bench.folder, "--db", str(path)) as server:
            time.sleep(SETTLE_SECONDS)
            memory.append(server.rss_bytes() / 1e6)
            seconds.append(server.start_seconds)
    label = f"{bench.finished:,} finished rollouts"
    bench.add("11", f"{label}: resident", "MB", memory, 150, at_least=False)
    bench.add("11", f"{label}: start-up", "s", seconds, 2, at_least=False)


def history(bench: Bench) -> None:
    """Row 9: median latency of every call, one caller, with a past ÷ with next to none, each call held to the goal.

    Both servers run throughout and take turns, call by call. ListRollouts asks for pages of
    100 by status and by time; filters that scan are bound to take longer and are not measured.
    """
    past, small = _past(bench), Path(tempfile.mkdtemp(dir=bench.folder)) / "small.db"
    _fill(small, SMALL_FINISHED, SMALL_RUNNING)
    _fill(past, 0, bench.running)
    job: dict[str, Any] = {"workload": "history", "callers": 1, "repetitions": bench.repetitions}
    job |= {"finished": bench.finished, "running": bench.running}
    job |= {"seconds": min(HISTORY_SECONDS, bench.seconds)}
    found: list[Trial] = []
    with (
        contenders.serve("sqlite", bench.folder, "--db", str(past)) as large,
        contenders.serve("sqlite", bench.folder, "--db", str(small)) as other,
    ):
        for number in range(bench.repetitions):
            bench.say(f"{number + 1}/{bench.repetitions} history")
            job["repetition"] = number
            job["other"] = {"finished": SMALL_FINISHED, "running": SMALL_RUNNING}
            job["other"]["address"] = other.address
            found.append(bench.measure(large, "sqlite", dict(job), note="past"))
    for part in found[0]:
        ratios = [trial[part]["past"]["p50_ms"] / trial[part]["small"]["p50_ms"] for trial in found]
        bench.add("9", f"{part}: median", "×", ratios, 1.2, at_least=False)


def in_process(bench: Bench) -> None:
    """Row 14: single rollouts written and read in process, with messages in and out, per second."""
    goals = {
        "memory": {"writes": 100_000, "reads": 500_000},
        "sqlite": {"writes": 10_000, "reads": 50_000},
    }
    for backend, wanted in goals.items():
        samples: dict[str, list[float]] = {}
        for _ in range(bench.repetitions):
            command = [sys.executable, "-m", "benchmarks.inproc", backend]
            command += [str(bench.seconds), str(bench.folder)]
            output = subprocess.run(
                command,
                check=True,
                cwd=contenders.ROOT,
                env=contenders.environment(),
                capture_output=True,
                text=True,
            ).stdout
            found = json.loads(output)
            bench.trials.append({"kind": f"in process, {backend}", "parts": found})
            for name, part in found.items():
                samples.setdefault(name, []).append(rate(part))
        for name, values in samples.items():
            bench.add("14", f"in process, {backend}: {name}", "/s", values, wanted.get(name))
