"""The training of `lightningstore demo`: GRPO on groups of rollouts, a validation, runners, and a judge that is slow."""

from __future__ import annotations

import asyncio
import itertools
import random
from typing import Any

from lightningstore.client import (
    AsyncLightningStore,
    Delivery,
    PromptTemplate,
    RolloutConfig,
    Runner,
)
from lightningstore.service.cli.demo_agent import WAYS, Agent, probabilities, token_id

#: Learning rates by namespace, so that two runs can be compared.
RUNS = {"default": 0.04, "small-steps": 0.01}
#: Task queues of the workers; "" is the default queue, that of the training.
WORKERS = {"runner-1": ["", "validation"], "runner-2": [""], "runner-3": [""]}
PROMPTS, MEMBERS = 4, 4
#: Lines of the prompt, of which every eighth step adds one.
ADVICE = (
    "Answer the question.",
    "Work it out digit by digit.",
    "Use the calculator for products.",
    "Check the last digit of the answer.",
    "Answer with the number alone.",
)
#: Number of quick steps, about a minute; later ones wait, so that the demo may stay open.
QUICK_STEPS, REST_SECONDS = 50, 4.0
MODEL_SECONDS, JUDGE_SECONDS = 0.15, 1.0
CONFIG = RolloutConfig(timeout=2, max_attempts=2, retry_condition=["failed"])
#: What goes wrong, by the number of the rollout modulo the period.
TROUBLE, TROUBLE_PERIOD = {5: "connection", 20: "stuck", 38: "unreadable"}, 48


async def train(address: str) -> None:
    """Run all trainings at the same time, until the task is cancelled."""
    async with AsyncLightningStore(address, namespace="") as store:
        description = f"The same training with a learning rate of {RUNS['small-steps']}"
        await store.create_namespace("small-steps", description=description)
    async with asyncio.TaskGroup() as tasks:
        for name in RUNS:
            tasks.create_task(_run(address, name))


async def _run(address: str, namespace: str) -> None:
    """Run one training. Elsewhere, each of its tasks is a process, on a machine of its own."""
    async with (
        AsyncLightningStore(address, namespace=namespace) as store,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(Training(store, namespace).run())
        tasks.create_task(_judge(store))
        for name, queues in WORKERS.items():
            runner = Runner(
                address,
                Agent(f"{namespace}/{name}", MODEL_SECONDS).answer,
                worker_id=name,
                concurrency=4,
                queues=queues,
                heartbeat_period=1,
                namespace=namespace,
            )
            tasks.create_task(runner.arun())


class Training:
    """An algorithm: it publishes resources, enqueues groups, and learns from those that its consumer delivers."""

    def __init__(self, store: AsyncLightningStore, namespace: str) -> None:
        self._store = store
        self._rate = RUNS[namespace]
        self._random = random.Random(namespace)  # noqa: S311  (no secret)
        self._numbers = itertools.count(1)
        self._weights = dict(zip(WAYS, (1.0, 0.0, -1.0), strict=True))

    async def run(self) -> None:
        """Train without end."""
        await self._store.create_consumer("trainer", unit="group", after_completion_number=0)
        for step in itertools.count(1):
            prompt = PromptTemplate("\n".join(ADVICE[: 1 + step // 8]))
            resources = {"prompt": prompt, "weights": self._weights}
            await self._store.update_resources("policy", resources)
            await self._enqueue(step)
            deliveries = await self._store.pull_finished(
                "trainer", PROMPTS, min_items=PROMPTS, wait=60
            )
            for delivery in deliveries:
                await self._learn(delivery)
            await self._store.acknowledge("trainer", deliveries)
            if step > QUICK_STEPS:
                await asyncio.sleep(REST_SECONDS)

    async def _enqueue(self, step: int) -> None:
        """Enqueue the groups of a step, and at every third a validation."""
        groups = [f"step-{step}/{number}" for number in range(PROMPTS)]
        rollouts = []
        for group in groups:
            task = self._task()
            for member in range(MEMBERS):
                trouble = TROUBLE.get(next(self._numbers) % TROUBLE_PERIOD)
                ids = {"rollout_id": f"{group}/{member}", "group_id": group, "mode": "train"}
                rollouts.append(_spec({**task, "trouble": trouble}, **ids))
        if step % 3 == 0:
            tasks = [self._task() for _ in range(PROMPTS)]
            rollouts += [_spec(task, mode="val", queue="validation") for task in tasks]
        sizes = [{"group_id": group, "size": MEMBERS, "deadline": 30} for group in groups]
        await self._store.enqueue_rollouts(rollouts, groups=sizes)

    def _task(self) -> dict[str, Any]:
        left, right = self._random.randint(2, 99), self._random.randint(2, 99)
        if self._random.random() < 0.5:
            return {"expression": f"{left} + {right}", "answer": left + right, "trouble": None}
        return {"expression": f"{left} * {right}", "answer": left * right, "trouble": None}

    async def _learn(self, delivery: Delivery) -> None:
        """Make the first words more likely whose rewards are above the mean of the group."""
        rewards = delivery.group.rewards if delivery.group is not None else None
        if rewards is None or rewards.std == 0:  # equal rewards teach nothing
            return
        ways, chances = {token_id(way): way for way in WAYS}, probabilities(self._weights)
        ids = [member.rollout_id for member in delivery.members if member.reward is not None]
        async for attempt in self._store.list_samples(ids):
            for sample in attempt:
                chosen = ways[sample.token_ids[sample.prompt_token_count]]
                advantage = ((sample.reward or 0.0) - rewards.mean) / rewards.std
                for way in WAYS:
                    gradient = (way == chosen) - chances[way]
                    self._weights[way] += self._rate * advantage * gradient


def _spec(task: dict[str, Any], **settings: Any) -> dict[str, Any]:
    """Return a rollout that takes the resources which are the latest when it is claimed."""
    labels = {"topic": "products" if "*" in task["expression"] else "sums"}
    return {"input": task, "resources_id": "latest", "config": CONFIG, "labels": labels, **settings}


async def _judge(store: AsyncLightningStore) -> None:
    """Score finished rollouts one at a time, slower than they finish."""
    await store.create_consumer("judge", statuses=["succeeded"], after_completion_number=0)
    while True:
        for delivery in await store.pull_finished("judge", wait=20):
            async for attempt in store.list_samples([delivery.item_id]):
                count = sum(sample.sampled_token_count for sample in attempt)
                scores = {"tokens": count}
                await store.update_attempt(delivery.item_id, "latest", scores=scores)
            await store.acknowledge("judge", delivery)
        await asyncio.sleep(JUDGE_SECONDS)
