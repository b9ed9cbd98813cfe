"""Queue, claims, completions and request ids under concurrency, and against a model of the queue."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from google.protobuf.message import Message
from lightningstore.client import (
    AsyncLightningStore,
    FailedPreconditionError,
    InvalidArgumentError,
    LightningStoreError,
)
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, enqueue, refused, snapshot

pytestmark = pytest.mark.asyncio

REQUEST_ID = "request-1"


async def ready(world: World) -> None:
    """Make what the writes below need."""
    await enqueue(world, 2, group_id="pool")
    await world.store.enqueue_rollout(1, rollout_id="open")
    await world.store.start_rollout(1, rollout_id="live", config=RETRY)


WRITES: list[tuple[str, Message, Message]] = [
    (
        "EnqueueRollouts",
        rollout_pb2.EnqueueRolloutsRequest(rollouts=[{"input_json": b"1"}] * 2),
        rollout_pb2.EnqueueRolloutsRequest(rollouts=[{"input_json": b"1"}]),
    ),
    (
        "StartRollout",
        claim_pb2.StartRolloutRequest(rollout={"input_json": b"1", "rollout_id": "mine"}),
        claim_pb2.StartRolloutRequest(rollout={"input_json": b"1", "rollout_id": "other"}),
    ),
    (
        "DequeueRollouts",
        claim_pb2.DequeueRolloutsRequest(limit=2, worker_id="w"),
        claim_pb2.DequeueRolloutsRequest(limit=1, worker_id="w"),
    ),
    (
        "StartAttempt",
        claim_pb2.StartAttemptRequest(rollout_id="open", worker_id="w"),
        claim_pb2.StartAttemptRequest(rollout_id="open", worker_id="v"),
    ),
    (
        "UpdateAttempt",
        attempt_pb2.UpdateAttemptRequest(
            attempt={"rollout_id": "live", "attempt_id": "latest", "status": 4}
        ),
        attempt_pb2.UpdateAttemptRequest(
            attempt={"rollout_id": "live", "attempt_id": "latest", "status": 3}
        ),
    ),
    (
        "UpdateRollout",
        rollout_pb2.UpdateRolloutRequest(rollout={"rollout_id": "live", "status": 1}),
        rollout_pb2.UpdateRolloutRequest(rollout={"rollout_id": "live", "status": 6}),
    ),
    (
        "PauseClaims",
        claim_pb2.PauseClaimsRequest(reason="a"),
        claim_pb2.PauseClaimsRequest(reason="b"),
    ),
    (
        "CancelRollouts",
        rollout_pb2.CancelRolloutsRequest(rollout_ids=["open", "live"]),
        rollout_pb2.CancelRolloutsRequest(rollout_ids=["open"]),
    ),
]
ONE_OF_EACH = pytest.mark.parametrize(
    ("method", "request_", "other"), WRITES, ids=[name for name, *_ in WRITES]
)


def tagged(request: Message) -> Any:
    copy = type(request)()
    copy.CopyFrom(request)
    copy.request_id = REQUEST_ID
    return copy


@ONE_OF_EACH
async def test_repeated_request_has_its_effect_once_and_the_same_answer(
    world: World, method: str, request_: Message, other: Message
) -> None:
    await ready(world)
    first = await world.store.call(method, tagged(request_))
    after = await snapshot(world)
    assert await world.store.call(method, tagged(request_)) == first
    assert await snapshot(world) == after
    await world.advance(599)
    if world.durable:
        await world.restart()
    assert await world.store.call(method, tagged(request_)) == first
    assert await snapshot(world) == after
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", REQUEST_ID):
        await world.store.call(method, tagged(other))


@ONE_OF_EACH
async def test_same_request_sent_at_once_has_its_effect_once(
    world: World, method: str, request_: Message, other: Message
) -> None:
    await ready(world)
    before = len([1 async for _ in world.store.iter_rollouts()])
    answers = await asyncio.gather(*(world.store.call(method, tagged(request_)) for _ in range(12)))
    assert all(answer == answers[0] for answer in answers)
    made = len([1 async for _ in world.store.iter_rollouts()]) - before
    assert made == {"EnqueueRollouts": 2, "StartRollout": 1}.get(method, 0)


@ONE_OF_EACH
async def test_refused_request_leaves_its_id_free(
    world: World, method: str, request_: Message, other: Message
) -> None:
    if method in ("EnqueueRollouts", "StartRollout", "DequeueRollouts", "PauseClaims"):
        bad = tagged(request_)
        if method == "PauseClaims":
            bad.reason = "\0"
        elif method == "DequeueRollouts":
            bad.limit = -1
        elif method == "StartRollout":
            bad.rollout.input_json = b"{"
        else:
            bad.rollouts[1].input_json = b"{"
    else:
        bad = tagged(request_)  # of rollouts that are not there yet
    with pytest.raises(LightningStoreError):
        await world.store.call(method, bad)
    await ready(world)
    await world.store.call(method, tagged(request_))


async def test_answer_of_a_repeat_outlives_what_happened_since(world: World) -> None:
    await enqueue(world, 2)
    first = await world.store.dequeue_rollouts(2, worker_id="w", request_id="q")
    await world.store.update_attempt(first[0].rollout_id, "latest", status="succeeded")
    await world.store.cancel_rollouts([first[1].rollout_id])
    again = await world.store.dequeue_rollouts(2, worker_id="w", request_id="q")
    assert [(r.rollout_id, r.attempt.attempt_id) for r in again] == [
        (r.rollout_id, r.attempt.attempt_id) for r in first
    ]


async def test_report_repeated_with_its_request_id_is_no_second_report(world: World) -> None:
    rollout = await world.store.start_rollout(1, config=RETRY)
    names = (rollout.rollout_id, rollout.attempt.attempt_id)
    first = await world.store.update_attempt(*names, status="failed", request_id="u")
    await world.store.dequeue_rollouts(1)
    await world.store.update_attempt(*names, status="succeeded")
    assert await world.store.update_attempt(*names, status="failed", request_id="u") == first
    assert (await world.store.get_attempt(*names)).status == "succeeded"


async def clients(world: World, count: int) -> list[AsyncLightningStore]:
    if world.how != "grpc":
        return [world.store] * count
    return [AsyncLightningStore(world.server.address, timeout=30) for _ in range(count)]


async def close(world: World, stores: list[AsyncLightningStore]) -> None:
    if world.how == "grpc":
        await asyncio.gather(*(store.close() for store in stores))


async def test_sixty_four_waiting_claimers_get_five_thousand_each_once(world: World) -> None:
    stores = await clients(world, 64)
    claimed: list[tuple[str, str]] = []
    complete = asyncio.Event()

    async def work(store: AsyncLightningStore, name: str) -> None:
        while not complete.is_set():
            for r in await store.dequeue_rollouts(8, worker_id=name, wait=600):
                assert (r.attempt.worker_id, r.attempt.sequence_number) == (name, 1)
                claimed.append((r.rollout_id, r.attempt.attempt_id))
            if len(claimed) >= 5000:
                complete.set()

    tasks = [asyncio.create_task(work(s, f"w{n}")) for n, s in enumerate(stores)]
    ids: list[str] = []
    for n in range(10):
        ids += await enqueue(world, 500, priority=n % 3)
    await complete.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await close(world, stores)
    assert sorted(rollout_id for rollout_id, _ in claimed) == sorted(ids)
    assert len({attempt_id for _, attempt_id in claimed}) > 4990  # 8 hex digits may meet
    assert (await world.store.get_statistics()).queue_depth == 0


async def test_claims_cancels_and_requeues_at_once_lose_and_double_nothing(world: World) -> None:
    stores = await clients(world, 8)
    ids = await enqueue(world, 300, config=RETRY)
    attempts: Counter[tuple[str, str]] = Counter()
    cancelled: set[str] = set()
    dice = random.Random(5)

    async def work(store: AsyncLightningStore) -> None:
        while rollouts := await store.dequeue_rollouts(3):
            for r in rollouts:
                attempts[r.rollout_id, r.attempt.attempt_id] += 1
                word = "failed" if dice.random() < 0.3 else "succeeded"
                await store.update_attempt(r.rollout_id, r.attempt.attempt_id, status=word)

    async def cancel() -> None:
        for rollout_id in ids[::5]:
            (rollout,) = await world.store.cancel_rollouts([rollout_id])
            if rollout.status == "cancelled":
                cancelled.add(rollout_id)

    await asyncio.gather(cancel(), *(work(store) for store in stores))
    await asyncio.gather(*(work(store) for store in stores))
    await close(world, stores)
    assert set(attempts.values()) == {1}
    done = {r.rollout_id: r async for r in world.store.iter_rollouts()}
    assert all(r.is_finished for r in done.values())
    assert {i for i, r in done.items() if r.status == "cancelled"} == cancelled
    assert sorted(r.completion_number for r in done.values()) == list(range(1, 301))
    for r in done.values():
        claims = sum(1 for rollout_id, _ in attempts if rollout_id == r.rollout_id)
        assert claims == r.attempt_count <= 3


async def test_concurrent_words_decide_once(world: World) -> None:
    stores = await clients(world, 8)
    for _ in range(10):
        rollout = await world.store.start_rollout(1)
        names = (rollout.rollout_id, rollout.attempt.attempt_id)
        words = ["succeeded", "failed"] * 4
        results = await asyncio.gather(
            *(s.update_attempt(*names, status=w) for s, w in zip(stores, words, strict=True)),
            return_exceptions=True,
        )
        status = (await world.store.get_rollout(names[0])).status
        for word, result in zip(words, results, strict=True):
            assert isinstance(result, FailedPreconditionError) == (word != status.value)
    await close(world, stores)
    numbers = [r.completion_number async for r in world.store.iter_rollouts()]
    assert numbers == list(range(1, 11))


class Model:
    """What SPEC section 2 says of rollouts with RETRY, in as few words as possible."""

    def __init__(self) -> None:
        self.queue: list[str] = []
        self.status: dict[str, str] = {}
        self.attempts: dict[str, list[str]] = {}

    def out(self, i: str) -> None:
        if i in self.queue:
            self.queue.remove(i)

    def tail(self, i: str, status: str) -> None:
        self.out(i)
        self.queue.append(i)
        self.status[i] = status

    def claim(self, i: str) -> None:
        self.out(i)
        self.status[i] = "preparing"
        self.attempts[i].append("preparing")

    def span(self, i: str, n: int) -> None:
        attempts = self.attempts[i]
        open_ = self.status[i] not in ("succeeded", "failed", "cancelled")
        if attempts[n] == "preparing" or (attempts[n] == "unresponsive" and open_):
            attempts[n] = "running"
        if n == len(attempts) - 1 and attempts[n] == "running" and open_:
            self.out(i)
            self.status[i] = "running"

    def report(self, i: str, n: int, word: str) -> bool:
        attempts = self.attempts[i]
        latest = n == len(attempts) - 1
        if attempts[n] == word:
            return True
        if attempts[n] in ("succeeded", "failed") and latest and self.status[i] != "cancelled":
            return False
        attempts[n] = word
        if not latest or self.status[i] in ("succeeded", "failed", "cancelled"):
            return True
        if word != "succeeded" and n + 1 < 3:
            if self.status[i] != "requeuing":
                self.tail(i, "requeuing")
            return True
        self.out(i)
        self.status[i] = "succeeded" if word == "succeeded" else "failed"
        return True


async def step(world: World, model: Model, dice: random.Random) -> None:
    """Do one random thing to the store and to the model."""
    store = world.store
    known = list(model.status)
    i = dice.choice(known) if known else ""
    n = dice.randrange(len(model.attempts[i])) if i and model.attempts[i] else -1
    names = (i, "")
    if n >= 0:
        names = (i, (await store.list_attempts(i))[n].attempt_id)
    what = dice.choice(
        ["enqueue", "dequeue", "dequeue", "start", "span", "report", "report", "put"]
    )
    if what == "enqueue" or not known:
        (made,) = await enqueue(world, 1, config=RETRY)
        model.status[made], model.attempts[made] = "queuing", []
        model.queue.append(made)
    elif what == "dequeue":
        count = dice.randrange(3)
        expected = model.queue[:count]
        assert [r.rollout_id for r in await store.dequeue_rollouts(count)] == expected
        for claimed in expected:
            model.claim(claimed)
    elif what == "start" and model.status[i] != "cancelled":
        await store.start_attempt(i)
        model.claim(i)
    elif what == "span" and n >= 0:
        await store.add_spans(batch(*names, "s"))
        model.span(i, n)
    elif what == "report" and n >= 0:
        word = dice.choice(["succeeded", "failed", "timeout", "unresponsive", "unresponsive"])
        if model.report(i, n, word):
            await store.update_attempt(*names, status=word)
        else:
            with pytest.raises(FailedPreconditionError):
                await store.update_attempt(*names, status=word)
    elif what == "put":
        status = dice.choice(["queuing", "requeuing", "cancelled"])
        finished = model.status[i] in ("succeeded", "failed", "cancelled")
        if status == model.status[i] or (status == "cancelled" and finished):
            return
        await store.update_rollout(i, status=status)
        if status == "cancelled":
            model.out(i)
            model.status[i] = status
        else:
            model.tail(i, status)


@pytest.mark.parametrize("seed", range(8))
async def test_random_lives_follow_the_model(world: World, seed: int) -> None:
    dice = random.Random(seed)
    model = Model()
    for turn in range(120):
        await step(world, model, dice)
        if turn % 10 == 9:
            stored = {r.rollout_id: r async for r in world.store.iter_rollouts()}
            assert {i: r.status.value for i, r in stored.items()} == model.status
            assert (await world.store.get_statistics()).queue_depth == len(model.queue)
            for i, r in stored.items():
                attempts = await world.store.list_attempts(i)
                assert [a.status.value for a in attempts] == model.attempts[i]
                for a in attempts:
                    assert (a.end_time is None) == (a.status in ("preparing", "running"))
                assert (r.end_time is None) == (not r.is_finished) == (not r.completion_number)
        if turn % 40 == 39 and world.durable:
            await world.restart()
    claimed = await world.store.dequeue_rollouts(1000)
    assert [r.rollout_id for r in claimed] == model.queue
