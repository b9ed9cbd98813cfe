"""One run: its trials, interleaved, and the resulting figures."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import contenders, loads
from benchmarks.contenders import Server
from benchmarks.loads import Trial

Samples = dict[str, list[Trial]]


@dataclass
class Figure:
    """One number of one row, from as many samples as there were repetitions."""

    row: str
    label: str
    unit: str
    samples: list[float]
    goal: float | None = None
    #: Whether more is better; else the goal is a most.
    at_least: bool = True
    #: How far off goal and record the best repetition may be before the guard fails: no noise does that.
    slack: float = 2.0

    @property
    def median(self) -> float:
        """Return what the table shows."""
        return statistics.median(self.samples)

    @property
    def met(self) -> bool | None:
        """Tell whether the median reaches the goal; None without one."""
        if self.goal is None:
            return None
        return self.median >= self.goal if self.at_least else self.median <= self.goal

    def far_off(self, recorded: float | None) -> bool:
        """Tell whether even the best repetition is off both goal and record by more than the slack.

        `recorded` is the median of the committed run, if it has one: where the goal is not met yet, losing half
        of what there is counts as much.
        """
        if self.goal is None:
            return False
        known = self.goal if recorded is None else recorded
        if self.at_least:
            return max(self.samples) < min(self.goal, known) / self.slack
        return min(self.samples) > max(self.goal, known) * self.slack


@dataclass
class Bench:
    """The selected scenarios, and all measurements so far."""

    folder: Path
    rows: frozenset[int]
    repetitions: int = 3
    #: Seconds that a loop is measured for.
    seconds: float = 3.0
    peer: bool = False
    #: Rollouts of the past in row 9 and 11.
    finished: int = 1_000_000
    running: int = 10_000
    #: Whether sizes shrink too.
    quick: bool = False
    figures: list[Figure] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    _shared: dict[str, Any] = field(default_factory=dict)

    def shared(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what several rows use and one makes."""
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def rounds(self, kinds: Iterable[str], job: dict[str, Any], **of_kind: Any) -> Samples:
        """Run a workload against all kinds in turn, as often as there are repetitions.

        Every repetition has fresh servers, which run side by side and take turns slice by slice: one that
        is not asked is idle. `of_kind` has changes of the job for a kind, by its name.
        """
        kinds = list(kinds)
        found: Samples = {kind: [] for kind in kinds}
        for number in range(self.repetitions):
            self.say(f"{number + 1}/{self.repetitions} {job['workload']}: {', '.join(kinds)}")
            with contextlib.ExitStack() as stack:
                pairs = []
                for kind in kinds:
                    server = stack.enter_context(contenders.serve(kind, self.folder))
                    changed = {**job, **of_kind.get(kind, {}), "peer": kind == "peer"}
                    pairs.append((server, changed))
                trials = loads.run(pairs)
            for kind, (server, changed), trial in zip(kinds, pairs, trials, strict=True):
                self.keep(kind, server, changed, trial)
                found[kind].append(trial)
        return found

    def trial(self, kind: str, job: dict[str, Any], *flags: str) -> Trial:
        """Run a workload against a fresh server."""
        with contenders.serve(kind, self.folder, *flags) as server:
            return self.measure(server, kind, job)

    def measure(self, server: Server, kind: str, job: dict[str, Any], note: str = "") -> Trial:
        """Run a workload against a server that runs."""
        (trial,) = loads.run([(server, {**job, "peer": kind == "peer"})])
        self.keep(kind, server, job, trial, note)
        return trial

    def keep(
        self, kind: str, server: Server, job: dict[str, Any], trial: Trial, note: str = ""
    ) -> None:
        """Keep what a trial gave for the JSON."""
        kept = {"kind": kind, "note": note, "job": job, "start_seconds": server.start_seconds}
        self.trials.append({**kept, "parts": trial})

    def add(
        self,
        row: str,
        label: str,
        unit: str,
        samples: Iterable[float],
        goal: float | None = None,
        *,
        at_least: bool = True,
        slack: float = 2.0,
    ) -> None:
        """Add a figure."""
        self.figures.append(Figure(row, label, unit, list(samples), goal, at_least, slack))

    def compare(
        self,
        row: str,
        part: str,
        ours: list[Trial],
        limit: list[Trial],
        goal: float | None,
        *,
        of: str = "",
        cpu: bool = True,
    ) -> None:
        """Add ours ÷ the limit: as rates, and as what the server can do with a second of a core.

        `of` names the limit where a row has several.
        """
        pairs = [(a[part], b[part]) for a, b in zip(ours, limit, strict=True)]
        part += of
        self.add(row, f"{part}: per second", "×", [rate(a) / rate(b) for a, b in pairs], goal)
        if cpu:
            ratios = [cpu_each(b) / cpu_each(a) for a, b in pairs]
            self.add(row, f"{part}: per server CPU", "×", ratios, goal)

    def say(self, text: str) -> None:
        """Print the progress."""
        with contextlib.suppress(OSError):
            print(f"  {text}", file=sys.stderr, flush=True)


def rate(part: dict[str, Any]) -> float:
    """Return items a second."""
    return float(part["items"]) / float(part["seconds"])


def cpu_each(part: dict[str, Any]) -> float:
    """Return seconds of server CPU an item; at least one tick of the kernel's clock in all."""
    return max(0.01, float(part["cpu_seconds"])) / max(1, int(part["items"]))
