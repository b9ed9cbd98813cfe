"""Train CartPole through the store: the algorithm of the demo, with a server and runners.

Starts a server with a new SQLite file and four runner processes, in one or several languages. In
each round it publishes the policy as a resource, enqueues a batch of episodes as a group, pulls
them as they finish, with their rewards, improves the policy, and acknowledges the batch. Half-way
it kills a runner, and the store gives its rollout to another one. All randomness is in the inputs,
so the result does not depend on which runner plays an episode.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections import Counter
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from lightningstore.client import Delivery, LightningStore, RolloutConfig
from physics import vary
from policy import SIZE, improve, new_task
from rich.console import Console
from rich.live import Live
from rich.table import Table
from server import server

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CURVE = ROOT / "docs" / "images" / "learning-curve.png"
#: Commands that start a runner, followed by an address and a name. `make demo` builds the programs.
COMMANDS = {
    "python": [sys.executable, str(HERE / "runner.py")],
    "go": [str(ROOT / "build/cartpole/go")],
    "typescript": [
        "node",
        str(ROOT / "client/typescript/build/all/examples/cartpole/runner.js"),
    ],
}
GOAL = 195.0
RETRY = RolloutConfig(
    max_attempts=3,
    retry_condition=["failed", "timeout", "unresponsive"],
    unresponsive_timeout=3,
    timeout=30,
)


class Runners:
    """The runner processes. Their names, which are their worker ids, begin with the language."""

    def __init__(self, address: str, languages: list[str], count: int) -> None:
        self._address = address
        names = [f"{languages[n % len(languages)]}-{n}" for n in range(count)]
        self._processes = {name: self._start(name) for name in names}

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        command = COMMANDS[language_of(name)]
        return subprocess.Popen([*command, self._address, name])  # noqa: S603

    def kill_one(self, store: LightningStore) -> None:
        """Kill a runner during an episode, as a crash would, and start a replacement."""
        while True:
            for worker in store.list_workers(statuses=["busy"]):
                name = worker.worker_id
                process = self._processes[name]
                process.send_signal(signal.SIGSTOP)  # what it works on stays what it works on
                if store.get_worker(name).status.value == "busy":
                    self._processes.pop(name).kill()
                    self._processes[f"{name}-again"] = self._start(f"{name}-again")
                    return
                process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop them after their current episodes."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            process.wait(20)


class Training:
    """The algorithm: a policy, and the rounds that improve it."""

    def __init__(self, store: LightningStore, languages: list[str], batch: int, seed: int) -> None:
        self.store = store
        self.played = Counter(dict.fromkeys(languages, 0))
        self.batch = batch
        self.seed = seed
        self.mean, self.spread = [0.0] * SIZE, [1.0] * SIZE
        self.returns: list[float] = []
        self.rows: list[tuple[str, ...]] = []
        self.retried = 0
        store.create_consumer("trainer")

    def round(self, number: int, runners: Runners | None) -> None:
        """Publish, enqueue, pull, improve, acknowledge. If `runners` is given, kill one of them."""
        began = time.perf_counter()
        policy = {"mean": self.mean, "spread": self.spread}
        self.store.update_resources("cartpole", {"policy": policy})
        first = self.seed + number * self.batch
        group = f"round-{number}"
        episodes = (
            {
                "rollout_id": f"{group}-{i:03}",
                "input": new_task(first + i),
                "group_id": group,
                "resources_id": "latest",
                "config": RETRY,
            }
            for i in range(self.batch)
        )
        self.store.enqueue_rollouts(episodes, groups=[{"group_id": group, "size": self.batch}])
        batch: list[Delivery] = []
        while len(batch) < self.batch:
            if runners is not None and len(batch) >= self.batch // 4:
                runners.kill_one(self.store)
                runners = None
            batch += self.store.pull_finished("trainer", self.batch - len(batch), wait=60)
        # Not in the order of finishing, so that the result is reproducible.
        rollouts = [delivery.rollout for delivery in sorted(batch, key=attrgetter("item_id"))]
        (version,) = {rollout.attempt.publish_number for rollout in rollouts}
        samples = [
            (vary(self.mean, self.spread, rollout.input["noise"]), rollout.reward or 0.0)
            for rollout in rollouts  # without a reward, it failed for good
        ]
        retries = sum(rollout.attempt_count - 1 for rollout in rollouts)
        played = Counter(language_of(rollout.attempt.worker_id) for rollout in rollouts)
        self.returns.append(fmean(total for _, total in samples))
        self.mean, self.spread = improve(samples, 0.2, 0.3)
        self.store.acknowledge("trainer", batch)
        self.retried += retries
        self.played.update(played)
        seconds = time.perf_counter() - began
        bar = "█" * round(self.returns[-1] / 500 * 10)
        rate = f"{self.batch / seconds:.0f}/s"
        counts = [str(played[name]) for name in self.played]
        row = (str(version), f"{self.returns[-1]:.1f}", bar, rate, *counts, str(retries or ""))
        self.rows.append(row)

    def table(self) -> Table:
        """Return the rounds so far as a table for the terminal."""
        table = Table(
            title="CartPole through the store: mean return of a round", title_justify="left"
        )
        for column in ("version", "return", "of 500", "rollouts", *self.played, "retried"):
            table.add_column(column)
        for row in self.rows:
            table.add_row(*row)
        return table


def language_of(worker_id: str) -> str:
    """Return the language of a runner."""
    return worker_id.partition("-")[0]


def languages(text: str) -> list[str]:
    """Parse a comma-separated list of languages."""
    names = text.split(",")
    unknown = [name for name in names if name not in COMMANDS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no runner in {', '.join(map(repr, unknown))}; there is {', '.join(COMMANDS)}"
        )
    return list(dict.fromkeys(names))


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
    """Run the demo; return 0 if it has learned."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--batch", type=int, default=60, help="episodes a round")
    parser.add_argument(
        "--runners", type=languages, default=["python"], help=f"some of {','.join(COMMANDS)}"
    )
    parser.add_argument("--processes", type=int, default=4, help="of all runners together")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-kill", action="store_true", help="leave all runners alive")
    options = parser.parse_args()
    console = Console()
    began = time.perf_counter()
    killed_in = None if options.no_kill else options.rounds // 2
    with server() as address, LightningStore(address) as store:
        count = max(options.processes, len(options.runners))
        runners = Runners(address, options.runners, count)
        training = Training(store, options.runners, options.batch, options.seed)
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
    played = ", ".join(f"{name} {count}" for name, count in training.played.items())
    console.print(
        f"{options.rounds} rounds, {spans} spans, {time.perf_counter() - began:.0f} s: "
        f"mean return {first:.1f} → {last:.1f} (goal {GOAL:.0f}); retried "
        f"after the kill: {training.retried}; episodes played by {played}; curve in {CURVE.relative_to(ROOT)}"
    )
    return 0 if last > GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
