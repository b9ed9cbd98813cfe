"""Long polls: who is served, what it costs, and what is left behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable

import pytest
from lightningstore.service.engine.polls import Poll, Polls
from lightningstore.service.engine.queue import RolloutQueue
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest

from tests.clock import ManualClock

pytestmark = pytest.mark.asyncio

QUEUES = [f"q{n}" for n in range(100)]


class Bench:
    """Polls over a queue alone, without a store."""

    def __init__(self) -> None:
        self.state = self
        self.queue = RolloutQueue()
        self.clock = ManualClock()
        self.polls = Polls(self, self.serve)
        self.pushed = 0
        self.paused = False
        # Neither groups nor consumers.
        self.groups = self.consumers = self
        self.begun: list[object] = []
        self.limits_claims = False
        #: What each poll has claimed, in the order of service.
        self.served: list[tuple[int, str]] = []
        self.tasks: list[asyncio.Task] = []

    async def wait(self, queues: Iterable[str], modes: Iterable[int] = ()) -> asyncio.Task:
        """Begin a poll, which claims one rollout."""
        number, chosen = len(self.tasks), (frozenset(queues), frozenset(modes))

        def claim() -> list[str]:
            for rollout_id in self.queue.claimable(*chosen):
                self.queue.discard(rollout_id)
                self.served.append((number, rollout_id))
                return [rollout_id]
            raise AssertionError("a poll was woken for nothing")

        poll = Poll(DequeueRolloutsRequest(), *chosen, claim)
        task = asyncio.create_task(self.polls.wait(poll, self.clock, 1e9))
        self.tasks.append(task)
        await asyncio.sleep(0)
        return task

    def push(self, queue: str, mode: int = 0) -> str:
        """Make a rollout claimable."""
        self.pushed += 1
        rollout_id = f"r{self.pushed}"
        self.queue.push(rollout_id, self.pushed, 0, mode, queue)
        return rollout_id

    def serve(self) -> None:
        """Go on with what `Polls.serve` has left."""
        self.polls.serve()

    async def serve_until(self, count: int) -> None:
        """Serve, in as many slices as that takes, until `count` polls have been served."""
        self.polls.serve()
        while len(self.served) < count:
            await asyncio.sleep(0)

    async def end(self) -> None:
        """Cancel the polls that still wait."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def test_any_interleaving_serves_who_waited_longest_for_what_it_can_take() -> None:
    dice = random.Random(7)
    for _ in range(30):
        bench = Bench()
        waiting: dict[int, tuple[frozenset[str], frozenset[int]]] = {}
        expected: list[tuple[int, str]] = []
        for _ in range(120):
            step = dice.random()
            if step < 0.5:
                interest = (
                    frozenset(dice.sample(QUEUES[:4], dice.randint(1, 3))),
                    frozenset(dice.sample(range(4), dice.choice([0, 0, 1, 2]))),
                )
                mode_queues = [(q, m) for q in interest[0] for m in interest[1] or range(4)]
                if any(bench.queue.holds(key) for key in mode_queues):
                    continue  # it would claim at once
                waiting[len(bench.tasks)] = interest
                await bench.wait(*interest)
            elif step < 0.65 and waiting:
                number = dice.choice(list(waiting))
                del waiting[number]
                bench.tasks[number].cancel()
                await asyncio.gather(bench.tasks[number], return_exceptions=True)
            else:
                queue, mode = dice.choice(QUEUES[:4]), dice.randrange(4)
                rollout_id = bench.push(queue, mode)
                for number, (queues, modes) in waiting.items():
                    if queue in queues and (not modes or mode in modes):
                        expected.append((number, rollout_id))
                        del waiting[number]
                        break
                await bench.serve_until(len(expected))
            assert bench.served == expected
            assert len(bench.polls) == len(waiting)
        await bench.end()
        left = (bench.polls._polls, bench.polls._groups, bench.polls._lanes, bench.polls._named)
        assert left == ({}, {}, {}, {})


async def test_ten_thousand_polls_of_a_hundred_queues_share_their_places() -> None:
    bench = Bench()
    for _ in range(10_000):
        await bench.wait(QUEUES)
    assert sum(len(lane.heap) for lane in bench.polls._lanes.values()) == 100
    ids = [bench.push(QUEUES[n % 100]) for n in range(300)]
    await bench.serve_until(300)
    assert bench.served == list(enumerate(ids))
    await bench.end()


async def test_polls_of_different_queues_are_woken_alone() -> None:
    """Each names a queue of its own and one that all share."""
    bench = Bench()
    for n in range(5000):
        await bench.wait([f"own-{n}", "shared"])
    for n in (4000, 4999):
        bench.push(f"own-{n}")
    await bench.serve_until(2)
    assert [number for number, _ in bench.served] == [4000, 4999]
    for _ in range(100):
        bench.push("shared")
    await bench.serve_until(102)
    assert sorted(number for number, _ in bench.served[2:]) == list(range(100))
    for task in bench.tasks[100:4900]:
        task.cancel()
    await asyncio.gather(*bench.tasks[100:4900], return_exceptions=True)
    assert len(bench.polls._lanes) == 1 + len(bench.polls)
    assert len(bench.polls._lanes["shared", -1].heap) < 300
    await bench.end()
    assert bench.polls._lanes == {}
