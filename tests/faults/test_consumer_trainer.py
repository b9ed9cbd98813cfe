"""A trainer that is killed again and again, between pull, checkpoint and acknowledgement, trains on everything once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from lightningstore.client import AsyncLightningStore, Delivery
from lightningstore.client.embedded import StoreTransport
from lightningstore.service.operations.store import Store, open_store
from lightningstore.service.operations.table import table
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.storage.sqlite.store import SqliteStorage

from tests.clock import ManualClock

ROLLOUTS, BATCH, KILLS = 300, 4, 100
ACK_SECONDS = 30


class Killed(Exception):
    """The trainer is killed."""


class Run:
    """A store on disk, a trainer, and what its last checkpoint contains."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock()
        self.dice = random.Random(7)
        self.kills = 0
        #: Completion numbers that the weights of the last checkpoint were trained on, in order.
        self.checkpoint: list[int] = []
        #: Deliveries of each item so far.
        self.delivered: dict[int, int] = {}

    async def open(self) -> None:
        storage = SqliteStorage(self.path, full_sync=False)
        self.service: Store = await open_store(storage, self.clock, Limits(), Retention())
        self.store = AsyncLightningStore.over(StoreTransport(table(self.service)), timeout=10)

    async def close(self) -> None:
        await self.store.close()
        await self.service.close()

    def may_kill(self) -> None:
        if self.kills < KILLS and self.dice.random() < 0.6:
            self.kills += 1
            raise Killed

    async def train(self) -> None:
        """Be a trainer from its start, with the last checkpoint, until it is killed or nothing is left."""
        await self.store.create_consumer(
            "trainer", after_completion_number=0, ack_deadline=ACK_SECONDS
        )
        weights = list(self.checkpoint)
        while True:
            deliveries = await self.store.pull_finished("trainer", BATCH)
            for delivery in deliveries:
                self.note(delivery)
            if not deliveries:
                return
            self.may_kill()
            weights += [
                d.completion_number for d in deliveries if d.completion_number not in weights
            ]
            self.may_kill()
            self.checkpoint = list(weights)
            self.may_kill()
            await self.store.acknowledge("trainer", deliveries)

    def note(self, delivery: Delivery) -> None:
        """Count a delivery: one that is repeated says so."""
        number = delivery.completion_number
        self.delivered[number] = self.delivered.get(number, 0) + 1
        assert delivery.delivery_count == self.delivered[number]


@pytest.mark.asyncio
async def test_a_killed_trainer_trains_on_everything_once(tmp_path: Path) -> None:
    run = Run(tmp_path / "s.db")
    await run.open()
    specs = [{"input": n, "rollout_id": f"r{n}"} for n in range(ROLLOUTS)]
    await run.store.enqueue_rollouts(specs)
    await run.store.cancel_rollouts([str(spec["rollout_id"]) for spec in specs])
    while True:
        try:
            await run.train()
        except Killed:
            if run.kills % 7 == 0:  # and the server with it
                await run.close()
                await run.open()
            await run.clock.advance(run.dice.choice([1, ACK_SECONDS + 1]))
            continue
        if len(run.checkpoint) == ROLLOUTS and not await run.store.list_deliveries("trainer"):
            break
        await run.clock.advance(ACK_SECONDS + 1)
    found = await run.store.get_consumer("trainer")
    await run.close()
    assert run.kills == KILLS
    assert sorted(run.checkpoint) == list(range(1, ROLLOUTS + 1))  # each once
    assert (found.consumed_count, found.outstanding_count) == (ROLLOUTS, 0)
