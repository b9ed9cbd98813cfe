"""A store as it is in the middle of a training: versions, groups, rewards, failures, workers, a consumer."""

from __future__ import annotations

import random

from lightningstore.client import AttemptStatus, Failure, LightningStore

PROMPT = "You answer questions about arithmetic.\nThink first.\nEnd with the number alone.\n"
BETTER = "You answer questions about arithmetic.\nThink step by step.\nEnd with the number alone.\nUse no units.\n"
GROUP_SIZE = 4


def fill(store: LightningStore, rounds: int = 3, groups: int = 3) -> None:
    """Run some rounds of training, and leave the next one half done."""
    chance = random.Random(7)
    store.create_consumer("trainer", unit="group", max_lag=2)
    store.create_consumer("judge", unit="rollout")
    store.add_resources({"prompt": PROMPT, "temperature": 0.7}, resources_id="policy")
    for number in range(rounds):
        if number:
            text = BETTER if number > 1 else PROMPT
            temperature = round(0.7 - 0.5 * number / rounds, 2)
            store.update_resources("policy", {"prompt": text, "temperature": temperature})
        enqueue(store, number, groups)
        finish(store, groups * GROUP_SIZE, chance, 0.2 + 0.6 * number / rounds)
        deliveries = store.pull_finished("trainer", groups)
        store.acknowledge("trainer", deliveries)
    enqueue(store, rounds, groups)
    finish(store, GROUP_SIZE, chance, 0.8)
    for worker in ("gpu-1", "gpu-2"):
        claimed = store.dequeue_rollouts(1, worker_id=worker)
        store.heartbeat(worker, stats={"load": 0.5}, attempts=claimed, publish_number=rounds)
    store.enqueue_rollout({"question": "held out"}, mode="val", queue="evaluation", priority=3)


def enqueue(store: LightningStore, number: int, groups: int) -> None:
    """Enqueue the groups of one round."""
    ids = [f"round-{number}-{group}" for group in range(groups)]
    store.enqueue_rollouts(
        [
            {
                "input": {"question": f"What is {number} times {member}?"},
                "group_id": group,
                "mode": "train",
                "labels": {"round": str(number)},
            }
            for group in ids
            for member in range(GROUP_SIZE)
        ],
        groups=[{"group_id": group, "size": GROUP_SIZE} for group in ids],
    )


def finish(store: LightningStore, count: int, chance: random.Random, mean: float) -> None:
    """Work on the next rollouts of the queue."""
    for rollout in store.dequeue_rollouts(count, worker_id="gpu-1"):
        attempt = rollout.latest_attempt
        assert attempt is not None
        if chance.random() < 0.1:
            failure = Failure("Timeout", "the model <b>did not</b> answer within 30 s")
            store.update_attempt(
                rollout.rollout_id,
                attempt.attempt_id,
                status=AttemptStatus.FAILED,
                failure=failure,
            )
            continue
        reward = round(min(1.0, max(0.0, chance.gauss(mean, 0.2))), 3)
        store.update_attempt(
            rollout.rollout_id,
            attempt.attempt_id,
            status=AttemptStatus.SUCCEEDED,
            reward=reward,
            scores={"length": chance.randint(20, 90)},
        )
