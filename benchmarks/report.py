"""The table of figures with their goals, and the JSON with every trial."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks import contenders
from benchmarks.bench import Bench, Figure, cpu_each, rate

PACKAGES = ("lightningstore", "grpcio", "protobuf", "uvloop", "aiosqlite")


def number(value: float) -> str:
    """Return a value with three digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def show(bench: Bench) -> None:
    """Print the figures, and below what each contender did in absolute terms."""
    console = Console(width=max(110, Console().width))
    table = Table(title="Figures: median (lowest to highest repetition)")
    for name in ("row", "figure"):
        table.add_column(name)
    for name in ("goal", "median", "spread"):
        table.add_column(name, justify="right")
    table.add_column("met")
    for figure in bench.figures:
        table.add_row(figure.row, figure.label, _goal(figure), *_values(figure), _met(figure))
    console.print(table)
    console.print(_absolute(bench))


def _goal(figure: Figure) -> str:
    if figure.goal is None:
        return ""
    return f"{'≥' if figure.at_least else '≤'} {number(figure.goal)}"


def _values(figure: Figure) -> tuple[str, str]:
    low, high = min(figure.samples), max(figure.samples)
    return f"{number(figure.median)} {figure.unit}", f"{number(low)} to {number(high)}"


def _met(figure: Figure) -> str:
    return {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[figure.met]


def _absolute(bench: Bench) -> Table:
    table = Table(title="Contenders: medians; CPU is the server's, an item")
    table.add_column("contender")
    table.add_column("callers", justify="right")
    table.add_column("what")
    for name in (
        "per second",
        "p50 ms",
        "p99 ms",
        "CPU µs",
        "load's cores",
        "others' cores",
        "resident MB",
    ):
        table.add_column(name, justify="right")
    for (kind, callers, part), found in _by_part(bench.trials).items():

        def middle(values: list[float]) -> str:
            return number(statistics.median(values))

        table.add_row(
            kind,
            callers,
            part,
            middle([rate(one) for one in found]),
            middle([one.get("p50_ms", 0) for one in found]),
            middle([one.get("p99_ms", 0) for one in found]),
            middle([1e6 * cpu_each(one) for one in found]),
            middle([one["load_cpu_seconds"] / one["seconds"] for one in found]),
            middle([one["other_cpu_seconds"] / one["seconds"] for one in found]),
            middle([one["rss_bytes"] / 1e6 for one in found]),
        )
    return table


def _by_part(
    trials: list[dict[str, Any]],
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    parts: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for trial in trials:
        kind = f"{trial['kind']} {trial.get('note', '')}".strip()
        callers = str(trial.get("job", {}).get("callers", ""))
        for name, part in trial["parts"].items():
            if "cpu_seconds" in part and part["calls"]:
                parts.setdefault((kind, callers, name), []).append(part)
    return parts


def as_json(bench: Bench, seconds: float) -> dict[str, Any]:
    """Return all that is known of a run; its duration is in seconds."""
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "machine": _machine(bench.folder),
        "versions": {
            "python": platform.python_version(),
            "peer": contenders.PEER if bench.peer else None,
            **{name: _version(name) for name in PACKAGES},
        },
        "repetitions": bench.repetitions,
        "seconds_a_loop": bench.seconds,
        "figures": [
            {
                "row": figure.row,
                "figure": figure.label,
                "unit": figure.unit,
                "goal": figure.goal,
                "at_least": figure.at_least,
                "median": figure.median,
                "lowest": min(figure.samples),
                "highest": max(figure.samples),
                "met": figure.met,
            }
            for figure in bench.figures
        ],
        "trials": bench.trials,
    }


def save(found: dict[str, Any], path: Path) -> None:
    """Write the JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=contenders.ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _machine(folder: Path) -> dict[str, Any]:
    where = folder.resolve()
    mounts = [
        part for part in psutil.disk_partitions(all=True) if where.is_relative_to(part.mountpoint)
    ]
    model = ""
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model or platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(terse=True),
        "file_system": max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else "",
        "load_average_before": psutil.getloadavg()[0],
    }


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []
