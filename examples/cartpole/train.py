"""Train CartPole through the store: the algorithm of the demo, and what it takes to run it.

Starts a server over a fresh SQLite file and four runner processes, then round after round publishes the
policy as a resource, enqueues a batch of episodes, waits for them on the stream, reads the rewards from
their spans, and improves the policy. Half-way it kills a runner: the store gives its rollout to another.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean

from lightningstore.client import LightningStore, Rollout, RolloutConfig
from policy import SIZE, improve, perturb
from rich.console import Console
from rich.live import Live
from rich.table import Table

HERE = Path(__file__).parent
CURVE = HERE.parents[1] / "docs" / "images" / "learning-curve.png"
GOAL = 195.0
RETRY = RolloutConfig(
    max_attempts=3,
    retry_condition=["failed", "timeout", "unresponsive"],
    unresponsive_timeout=3,
    timeout=30,
)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run `lightningstore serve` over a fresh file; yields its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("lightningstore")), "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            first_line = process.stdout.readline() if process.stdout else ""
            yield first_line.split(" on ")[1].split(",")[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


class Runners:
    """The runner processes."""

    def __init__(self, address: str, count: int) -> None:
        """Start them."""
        self._address = address
        self._processes = {f"runner-{n}": self._start(f"runner-{n}") for n in range(count)}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, str(HERE / "runner.py"), self._address, name])  # noqa: S603

    def kill_one(self, name: str) -> None:
        """Kill a runner as a crash would, and start one in its place."""
        self._processes.pop(name).kill()
        self._processes[f"{name}-again"] = self._start(f"{name}-again")

    def stop(self) -> None:
        """Let them finish and go."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(20)


class Training:
    """The algorithm: a policy, and the rounds that improve it."""

    def __init__(self, store: LightningStore, batch: int, seed: int) -> None:
        """Start with a policy that knows nothing."""
        self.store = store
        self.batch = batch
        self.seed = seed
        self.mean, self.spread = [0.0] * SIZE, [1.0] * SIZE
        self.returns: list[float] = []
        self.rows: list[tuple[str, ...]] = []
        self.retried = 0

    def round(self, number: int, runners: Runners | None) -> None:
        """Publish, enqueue, wait, read, improve. Kills one of `runners`, if given, on the way."""
        began = time.perf_counter()
        policy = {"mean": self.mean, "spread": self.spread}
        resources = self.store.update_resources("cartpole", {"policy": policy})
        first = self.seed + number * self.batch
        rollouts = self.store.enqueue_rollouts(
            {
                "input": {"perturbation": first + i, "episode": first + i},
                "mode": "train",
                "group_id": f"round-{number}",
                "resources_id": resources.resources_id,
                "config": RETRY,
            }
            for i in range(self.batch)
        )
        samples, retries = [], 0
        for rollout in self.store.wait_for_rollouts([r.rollout_id for r in rollouts]):
            if runners is not None and len(samples) == self.batch // 4:
                runners.kill_one(busy_runner(self.store))
                runners = None
            retries += rollout.attempt_count - 1
            samples.append((self._weights(rollout), self._reward(rollout)))
        self.returns.append(fmean(total for _, total in samples))
        self.mean, self.spread = improve(samples, 0.2, 1.0 if number < 8 else 0.5)
        self.retried += retries
        seconds = time.perf_counter() - began
        bar = "█" * round(self.returns[-1] / 500 * 30)
        rate = f"{self.batch / seconds:.0f}/s"
        self.rows.append((str(number), f"{self.returns[-1]:.1f}", bar, rate, str(retries or "")))

    def _weights(self, rollout: Rollout) -> list[float]:
        return perturb(self.mean, self.spread, rollout.input["perturbation"])

    def _reward(self, rollout: Rollout) -> float:
        """Return the reward that the rollout's last attempt left among its spans."""
        for span in self.store.query_spans(
            rollout.rollout_id, "latest", name="agentlightning.annotation"
        ):
            return float(span.attributes["agentlightning.reward.0.value"])
        return 0.0  # it failed for good

    def table(self) -> Table:
        """Return the rounds so far, for the screen."""
        table = Table(title="CartPole through the store", title_justify="left")
        for column in ("round", "mean return", "of 500", "rollouts", "retried"):
            table.add_column(column)
        for row in self.rows:
            table.add_row(*row)
        return table


def busy_runner(store: LightningStore) -> str:
    """Return the name of a runner that is at work, so that killing it hurts."""
    while True:
        for worker in store.list_workers(statuses=["busy"]):
            return worker.worker_id


def draw(returns: list[float], killed_in: int | None) -> None:
    """Write the learning curve as a picture."""
    import matplotlib as mpl  # noqa: PLC0415  (slow to import, and needed at the end alone)

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    axes.plot(range(len(returns)), returns, marker="o", color="#2266aa", label="mean of the batch")
    axes.axhline(GOAL, color="#888888", linestyle="--", label=f"goal, {GOAL:.0f}")
    if killed_in is not None:
        axes.axvline(killed_in, color="#cc4444", linestyle=":", label="a runner is killed")
    axes.set(
        xlabel="round", ylabel="mean return", title="CartPole, trained through the store", ylim=0
    )
    axes.legend()
    axes.grid(alpha=0.3)
    CURVE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(CURVE, dpi=110)


def main() -> int:
    """Run the demo; 0 if it has learned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=14)
    parser.add_argument("--batch", type=int, default=60, help="episodes a round")
    parser.add_argument("--runners", type=int, default=4, help="runner processes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-kill", action="store_true", help="leave all runners alive")
    options = parser.parse_args()
    console = Console()
    began = time.perf_counter()
    killed_in = None if options.no_kill else options.rounds // 2
    with server() as address, LightningStore(address) as store:
        runners = Runners(address, options.runners)
        training = Training(store, options.batch, options.seed)
        try:
            with Live(training.table(), console=console) as live:
                for number in range(options.rounds):
                    training.round(number, runners if number == killed_in else None)
                    live.update(training.table())
        finally:
            runners.stop()
        spans = store.get_statistics().span_count
    draw(training.returns, killed_in)
    first, last = training.returns[0], training.returns[-1]
    console.print(
        f"{options.rounds} rounds, {spans} spans, {time.perf_counter() - began:.0f} s: "
        f"mean return {first:.1f} → {last:.1f} (goal {GOAL:.0f}); {training.retried} rollouts retried "
        f"after the kill; curve in {CURVE.relative_to(HERE.parents[1])}"
    )
    return 0 if last > GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
