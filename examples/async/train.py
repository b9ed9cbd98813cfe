"""Fully asynchronous training: agents never wait for the trainer, and it trains on data at most `staleness` versions old.

The consumer is the buffer between both. Its `max_outstanding` holds claims back before data gets too old, its `max_lag`
skips what is too old all the same, and a batch that is not acknowledged is delivered again after a crash.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from lightningstore.client import LightningStore

sys.path.append(str(Path(__file__).parents[1] / "cartpole"))
from physics import vary
from policy import SIZE, improve, new_task


def train(
    store: LightningStore, staleness: int, *, steps: int = 12, batch: int = 32, gpu: float = 1.0
) -> dict[str, float]:
    """Train CartPole for some steps; 0 as `staleness` is the synchronous loop, which waits for each batch."""
    store.create_consumer(
        "trainer",
        statuses=["succeeded"],
        after_completion_number=0,
        max_lag=staleness,
        max_outstanding=(staleness + 1) * batch,
    )
    policies = {}  # by publish number: what a sample was generated with

    def publish(mean: list[float], spread: list[float]) -> None:
        weights = store.update_resources("policy", {"policy": {"mean": mean, "spread": spread}})
        policies[weights.publish_number] = mean, spread

    publish([0.0] * SIZE, [1.0] * SIZE)
    # More than is needed: which of them run on which weights is decided when they are claimed.
    tasks = (new_task(seed) for seed in range(2 * steps * batch))
    store.enqueue_rollouts({"input": task, "resources_id": "latest"} for task in tasks)
    waited, lags, began = 0.0, [], time.perf_counter()
    for _ in range(steps):
        start = time.perf_counter()
        deliveries = store.pull_finished("trainer", batch, min_items=batch, wait=300)
        waited += time.perf_counter() - start
        samples = []
        for delivery in deliveries:
            rollout = delivery.rollout
            policy = policies[rollout.attempt.publish_number]
            samples.append((vary(*policy, rollout.input["noise"]), rollout.reward))
            lags.append(delivery.lag)
        time.sleep(gpu)  # what a step of a real trainer takes
        publish(*improve(samples, 0.2, 0.3))
        store.acknowledge("trainer", deliveries)
    seconds = time.perf_counter() - began
    consumer = store.get_consumer("trainer")
    generated = consumer.consumed_count + consumer.skipped_count + consumer.backlog_count
    return {
        "seconds": seconds,
        "waiting": waited / seconds,
        "trained": consumer.consumed_count / generated,
        "lag": sum(lags) / len(lags),
        "reward": sum(reward for _, reward in samples) / batch,
    }
