"""What asynchronous training gains: the same loop with staleness 0 and 2, each in a fresh namespace of a new server.

Run it with `python examples/async/figures.py`. An episode takes the time of its steps plus a pause of up to three
seconds, as agents that call a model do, so that a batch waits for its slowest episode.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightningstore.client import LightningStore, Runner
from train import train

sys.path.append(str(Path(__file__).parents[1] / "cartpole"))
from runner import play
from server import server

RUNNERS = 48


def agent(task: Any, resources: Any, tracer: Any, context: Any) -> float:
    """Play an episode, as slowly as an agent that calls a model."""
    time.sleep(random.Random(task["noise"][0]).choice([0.3, 0.5, 0.8, 3.0]))
    return float(play(task, resources, tracer, context))


def main() -> None:
    """Print a table."""
    with server() as address:
        print("| staleness | seconds | trainer waits | rollouts trained | mean lag | last reward |")
        print("| --- | --- | --- | --- | --- | --- |")
        for staleness in (0, 2):
            run(address, staleness)


def run(address: str, staleness: int) -> None:
    """Train in a namespace of its own, and print a row."""
    name = f"staleness-{staleness}"
    with LightningStore(address) as admin:
        admin.create_namespace(name)
    with LightningStore(address, namespace=name) as store:
        runner = Runner(store, agent, concurrency=RUNNERS, poll_wait=1)
        thread = threading.Thread(target=runner.run)
        thread.start()
        found = train(store, staleness)
        runner.stop()
        thread.join()
        print(
            f"| {staleness} | {found['seconds']:.0f} | {found['waiting']:.0%} | {found['trained']:.0%} | "
            f"{found['lag']:.2f} | {found['reward']:.0f} |"
        )


if __name__ == "__main__":
    main()
