"""Work always ends: random limits, groups, retries, cancellations, pauses and deadlines, on a clock that is moved."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from lightningstore.client import AsyncLightningStore, FailedPreconditionError, RolloutConfig
from lightningstore.client.embedded import StoreTransport
from lightningstore.service.operations.store import open_store
from lightningstore.service.operations.table import table
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.storage.memory import MemoryStorage

from tests.clock import ManualClock

#: Scenarios; LIGHTNINGSTORE_SCENARIOS=10000 runs the whole search.
SCENARIOS = int(os.environ.get("LIGHTNINGSTORE_SCENARIOS", "300"))
CHUNK = 100
#: Turns after which a scenario is taken to hang.
TURNS = 2000


class Scenario:
    """A store with some work, runners that claim and report, and a trainer that pulls and acknowledges."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.clock = ManualClock()
        self.by_group = self.dice.random() < 0.5
        self.retries = self.dice.randint(1, 3)
        self.running: list[str] = []
        self.held: list[Any] = []
        self.deliveries: Counter[str] = Counter()
        self.set_aside = 0

    async def run(self) -> None:
        """Play until everything has finished and is acknowledged."""
        storage = MemoryStorage()
        service = await open_store(storage, self.clock, Limits(), Retention())
        self.store = AsyncLightningStore.over(StoreTransport(table(service)), timeout=10)
        try:
            await self._begin()
            for _ in range(TURNS):
                if await self._is_over():
                    break
                await self._turn()
            else:
                found = await self.store.get_consumer("trainer")
                statuses = (await self.store.get_statistics()).rollouts
                pytest.fail(f"work does not end: {found.message}, {statuses}, {self.held}")
            await self._check()
        finally:
            await self.store.close()
            await service.close()

    async def _begin(self) -> None:
        dice = self.dice
        self.limit = dice.randint(1, 6)
        self.most_deliveries = dice.choice([0, 0, 1, 2])
        await self.store.create_consumer(
            "trainer",
            unit="group" if self.by_group else "rollout",
            statuses=dice.choice([(), (), ["succeeded"], ["failed", "succeeded"]]),
            queues=dice.choice([(), (), ["a"], ["", "a"]]),
            labels=dice.choice([None, None, {"x": "1"}]),
            after_completion_number=0,
            max_outstanding=self.limit,
            max_lag=dice.choice([None, None, 0, 1]),
            max_deliveries=self.most_deliveries,
            ack_deadline=5,
        )
        if dice.random() < 0.3:
            await self.store.create_consumer("idle", after_completion_number=0)
        await self.store.update_resources("policy", {})
        for number in range(dice.randint(1, 4)):
            await self._enqueue(number)

    async def _enqueue(self, number: int) -> None:
        dice = self.dice
        size = dice.randint(1, 5)
        has_group = dice.random() < 0.6
        config = RolloutConfig(max_attempts=self.retries, retry_condition=["failed", "timeout"])
        specs = [
            {
                "input": n,
                "group_id": f"g{number}" if has_group else "",
                "queue": dice.choice(["", "a", "b"]),
                "labels": dice.choice([{}, {"x": "1"}]),
                "priority": dice.randint(0, 2),
                "config": config,
            }
            for n in range(size)
        ]
        deadline = dice.choice([None, None, 3])
        groups = [{"group_id": f"g{number}", "size": size, "deadline": deadline}]
        await self.store.enqueue_rollouts(specs, groups=groups if has_group else [])

    async def _is_over(self) -> bool:
        counts = (await self.store.get_statistics()).rollouts
        live = sum(n for status, n in counts.items() if not status.is_finished)
        found = await self.store.get_consumer("trainer")
        waiting = found.backlog_count + found.delivered_count + found.redelivery_count
        return not live and not waiting

    async def _turn(self) -> None:
        """Do one thing. Runners and the trainer always come up again; pauses and crashes end."""
        chosen = self.dice.choices(
            [self._claim, self._report, self._pull, self._acknowledge, self._disturb],
            [4, 4, 3, 3, 1],
        )[0]
        await chosen()

    async def _claim(self) -> None:
        claimed = await self.store.dequeue_rollouts(
            self.dice.randint(1, 4), queues=["", "a", "b"], worker_id="w"
        )
        self.running += [r.rollout_id for r in claimed]
        fresh = [r for r in claimed if r.attempt.sequence_number == 1 and not r.group_id]
        found = await self.store.get_consumer("trainer")
        if fresh and not self.by_group and found.outstanding_count > self.limit:
            begun = [r for r in claimed if r not in fresh]
            assert begun or all(self._is_free(found, r) for r in fresh), (
                "a claim went above the limit"
            )

    @staticmethod
    def _is_free(found: Any, rollout: Any) -> bool:
        if found.queues and rollout.queue not in found.queues:
            return True
        return any(rollout.labels.get(key) != value for key, value in found.labels.items())

    async def _report(self) -> None:
        if self.running:
            rollout_id = self.running.pop(self.dice.randrange(len(self.running)))
            status = self.dice.choice(["succeeded", "failed"])
            with suppress(FailedPreconditionError):  # cancelled, or it has timed out
                await self.store.update_attempt(rollout_id, "latest", status=status)

    async def _pull(self) -> None:
        most = self.dice.randint(1, 3)
        for delivery in await self.store.pull_finished("trainer", most):
            self.deliveries[delivery.item_id] += 1
            now_ns = self.clock.wall_ns()
            again = [d for d in self.held if d.item_id == delivery.item_id]
            running = [d for d in again if d.ack_deadline_time.timestamp() * 1e9 > now_ns]
            assert not running or running[0].completion_number != delivery.completion_number
            self.held.append(delivery)

    async def _acknowledge(self) -> None:
        if self.held:
            delivery = self.held.pop(self.dice.randrange(len(self.held)))
            outcome = self.dice.choice(["consumed"] * 3 + ["dropped", "released"])
            with suppress(FailedPreconditionError):  # its deadline had passed
                await self.store.acknowledge("trainer", delivery, outcome)

    async def _disturb(self) -> None:
        what = self.dice.randrange(6)
        if what == 0:
            self.held.clear()  # the trainer is killed
            await self.clock.advance(6)
        elif what == 1:
            await self.store.pause_claims()
            await self.clock.advance(1)
            await self.store.resume_claims()
        elif what == 2:
            await self.store.update_resources("policy", {})
        elif what == 3:
            running = [r async for r in self.store.iter_rollouts()]
            chosen = self.dice.choice(running)
            await self.store.cancel_rollouts([chosen.rollout_id])
        elif what == 4 and self.dice.random() < 0.5:
            self.limit = self.dice.randint(1, 6)
            await self.store.update_consumer("trainer", max_outstanding=self.limit)
        else:
            await self.clock.advance(1)

    async def _check(self) -> None:
        found = await self.store.get_consumer("trainer")
        assert found.backlog_count == found.outstanding_count == 0
        assert len(await self.store.list_deliveries("trainer")) == found.set_aside_count
        assert await self.store.pull_finished("trainer", 9) == []


@pytest.mark.asyncio
@pytest.mark.parametrize("start", range(0, SCENARIOS, CHUNK))
async def test_work_always_ends(start: int) -> None:
    for seed in range(start, min(start + CHUNK, SCENARIOS)):
        try:
            await Scenario(seed).run()
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
        await asyncio.sleep(0)
