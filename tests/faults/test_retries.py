"""Done, but told that it was not: a write is repeated with its request id, and has its effect once."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.storage.sqlite.store import SqliteStorage

from tests.calls import Calls
from tests.clock import ManualClock
from tests.faults.simulation import (
    Requests,
    SimulatedDisk,
    crash,
    dump,
    frozen,
    seeded,
    store_over,
    writes,
)

pytestmark = pytest.mark.asyncio

CRASH_EVERY = 300


class World:
    """An engine that is restarted now and then, and answers or errors by call."""

    def __init__(self, make: Callable[[], Any], clock: ManualClock) -> None:
        self.make, self.clock = make, clock
        self.storage = make()

    async def open(self) -> None:
        self.service = store_over(self.storage, self.clock)
        await self.service.engine.open()

    async def call(self, method: str, request: Message, ids_from: int) -> Message | str:
        """Call it with ids that follow from a number; returns the answer, or the name of the refusal."""
        copied = type(request)()
        copied.CopyFrom(request)
        with seeded(ids_from):
            try:
                return await getattr(Calls(self.service), method)(copied)
            except StoreError as error:
                return type(error).__name__

    async def crash(self) -> None:
        await crash(self.service)
        await self.storage.close()
        await self.open()


def told(answer: Message | str) -> Any:
    """Return the expected answer to a late repeat, with rollouts and resources in their current state."""
    if isinstance(answer, str):
        return answer
    if "resources" in answer.DESCRIPTOR.fields_by_name:
        return answer.resources.resources_id
    if "deliveries" in answer.DESCRIPTOR.fields_by_name:
        return []  # a late repeat leaves out what is acknowledged meanwhile
    rollouts = list(getattr(answer, "rollouts", ()))
    if "rollout" in answer.DESCRIPTOR.fields_by_name:
        rollouts.append(answer.rollout)
    return [r.rollout_id for r in rollouts] or frozen(answer)


class Twins:
    """The same writes in two worlds: in one, every answer arrives; in the other some answers are lost."""

    def __init__(self, make: Callable[[], Any], dice: random.Random) -> None:
        self.dice, self.clock = dice, ManualClock()
        self.requests = Requests(dice)
        self.even = World(lambda: SimulatedDisk(random.Random(1)), self.clock)
        self.odd = World(make, self.clock)
        self.late: list[tuple[str, Message, Message | str]] = []
        self.lost: Counter[str] = Counter()

    async def step(self, number: int) -> None:
        method, request = self.requests.next()
        expected = await self.even.call(method, request, number)
        repeats = "request_id" in request.DESCRIPTOR.fields_by_name
        if (
            repeats and self.dice.random() < 0.5
        ):  # the request is lost: it comes at the second try alone
            self.lost["request"] += 1
        else:
            first = await self.odd.call(method, request, number)  # and its answer is lost
            assert told(first) == told(expected), f"{method}: {first} instead of {expected}"
            self.lost["reply"] += 1
            if number % CRASH_EVERY == 0:
                await self.odd.crash()
                await self.even.crash()  # a restart moves deadlines
                self.lost["crash"] += 1
        if repeats:
            answer = await self.odd.call(method, request, -number)
            assert isinstance(answer, str) == isinstance(expected, str), (method, answer, expected)
            same = (
                answer == expected
                if isinstance(answer, str)
                else frozen(answer) == frozen(expected)
            )
            assert same, f"{method}: {answer} instead of {expected}"
            self.lost[method] += 1
            if told(expected):  # to an empty claim a late repeat is a new one
                self.late.append((method, request, expected))
        if not isinstance(expected, str):
            self.requests.learn(expected)
        if self.late and self.dice.random() < 0.2:
            method, request, expected = self.dice.choice(self.late)
            if not isinstance(expected, str):  # a refusal may be none by now
                assert told(await self.odd.call(method, request, 0)) == told(expected), method
                self.lost["late"] += 1
            del self.late[:-50]

    async def compare(self) -> None:
        even, odd = await dump(Calls(self.even.service)), await dump(Calls(self.odd.service))
        assert even == odd


@pytest.mark.parametrize("backend", ["simulated", "sqlite"])
async def test_repeated_write_has_its_effect_once_and_the_same_answer(
    tmp_path: Path, dice: random.Random, tries, backend: str
) -> None:
    def make() -> Any:
        if backend == "sqlite":
            return SqliteStorage(tmp_path / "store.db", full_sync=False)
        return SimulatedDisk(random.Random(2))

    twins = Twins(make, dice)
    async with closing(twins.even), closing(twins.odd):
        await repeat(
            twins, dice, tries("lost replies and requests") // (4 if backend == "sqlite" else 1)
        )
    names = {re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower() for name in writes()}
    # A pause would stop all claims: tests/contract/test_pause.py repeats these.
    names -= {"pause_claims", "resume_claims"}
    tried = twins.lost.keys() - {"reply", "request", "crash", "late"}
    assert tried == names, "a write was not tried"
    print(dict(twins.lost))


@asynccontextmanager
async def closing(world: World) -> AsyncIterator[None]:
    """Open a world and close it, also where a test fails: otherwise threads of SQLite keep the process."""
    await world.open()
    try:
        yield
    finally:
        await world.service.close()


async def repeat(twins: Twins, dice: random.Random, wanted: int) -> None:
    """Do writes in both until a number of replies and requests have been lost."""
    number = 0
    while min(twins.lost["reply"], twins.lost["request"]) < wanted:
        number += 1
        await twins.step(number)
        if number % 20 == 0:
            await twins.clock.advance(dice.choice([0.01, 1.5, 30]))
        if number % 4000 == 0:
            await twins.compare()
    await twins.compare()
