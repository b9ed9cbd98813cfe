"""Rewards in lists, imports and exports."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lightningstore.client import (
    AlreadyExistsError,
    InvalidArgumentError,
    datasets,
)
from lightningstore.v1.attempt_pb2 import (
    REWARD_SOURCE_REPORTED,
    REWARD_SOURCE_SPANS,
)
from lightningstore.v1.import_pb2 import ImportRolloutsRequest

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, claim, refused
from tests.contract.rewarded import add, reward_span, scored, stored, traced

pytestmark = pytest.mark.asyncio


async def test_filter_by_reward_of_the_latest_attempt(world: World) -> None:
    ids = await scored(world, 0.5, None, -2.0, 0.0, 1e9)

    async def found(**options: Any) -> list[int]:
        page = await world.store.list_rollouts(include_total_size=True, **options)
        assert page.total_size == len(page)
        return [ids.index(r.rollout_id) for r in page]

    assert await found(min_reward=0.0) == [0, 3, 4]
    assert await found(max_reward=0.0) == [2, 3]
    assert await found(max_reward=-0.0, min_reward=-1e-300) == [3]
    assert await found(min_reward=0.5, max_reward=0.5) == [0]
    assert await found(min_reward=1.0, max_reward=0.0) == []
    assert await found(min_reward=0.5, rollout_ids=[ids[1]], filter_logic="or") == [0, 1, 4]
    # A new attempt has no reward yet.
    await world.store.start_attempt(ids[0])
    assert await found(min_reward=0.0) == [3, 4]
    await world.store.update_attempt(ids[0], "latest", status="failed", reward=3.0)
    assert await found(min_reward=3.0) == [0, 4]


async def test_the_reward_of_an_earlier_attempt_does_not_count(world: World) -> None:
    rollout, attempt = await claim(world, config=RETRY)
    await world.store.update_attempt(
        rollout.rollout_id, attempt.attempt_id, status="failed", reward=9.0
    )
    await world.store.dequeue_rollouts(1)
    await world.store.update_attempt(rollout.rollout_id, attempt.attempt_id, reward=8.0)
    assert (await world.store.list_rollouts(min_reward=-1e9)) == []
    await world.store.update_attempt(rollout.rollout_id, "latest", reward=1.0)
    assert len(await world.store.list_rollouts(min_reward=1.0, max_reward=1.0)) == 1


async def test_order_by_reward_in_pages(world: World) -> None:
    rewards = [0.5, None, -2.0, 0.0, 1e9, None, 0.5]
    ids = await scored(world, *rewards)

    async def order(order_by: str) -> list[int]:
        found = world.store.iter_rollouts(order_by=order_by, page_size=2)
        return [ids.index(r.rollout_id) async for r in found]

    assert await order("reward") == [1, 5, 2, 3, 0, 6, 4]
    assert await order("reward desc") == [4, 6, 0, 3, 2, 5, 1]


async def test_cancelled_rollouts_keep_their_reward(world: World) -> None:
    rollout, _ = await claim(world)
    await world.store.update_attempt(rollout.rollout_id, "latest", reward=0.5)
    await world.store.cancel_rollouts([rollout.rollout_id])
    assert [r.reward for r in await world.store.list_rollouts(min_reward=0.5)] == [0.5]


def imported(rollout_id: str, **attempt: Any) -> ImportRolloutsRequest:
    """Return a finished rollout to import."""
    times = {"start_time": {"seconds": 10}, "end_time": {"seconds": 20}}
    names = {"rollout_id": rollout_id, "attempt_id": "a"}
    return ImportRolloutsRequest(
        rollout={
            "rollout_id": rollout_id,
            "input_json": b"1",
            "status": 4,
            "attempt_count": 1,
            "latest_attempt_id": "a",
            **times,
        },
        attempts=[{**names, "sequence_number": 1, "status": 3, **times, **attempt}],
    )


async def test_imports_keep_rewards_and_scores(world: World) -> None:
    given = imported("r", reward=0.5, scores={"s": 1.0})
    for known in (0, 1):
        result = await world.store.import_rollouts([given])
        assert result.known_count == known
    found = await world.store.get_rollout("r")
    assert (found.reward, found.scores) == (0.5, {"s": 1.0})
    assert found.attempt.message.reward_source == REWARD_SOURCE_REPORTED
    assert [r.rollout_id for r in await world.store.list_rollouts(min_reward=0.5)] == ["r"]


async def test_imports_take_missing_rewards_from_their_spans(world: World) -> None:
    given = imported("r")
    given.batches.add(rollout_id="r", attempt_id="a", spans=[traced(1), reward_span(2, 0.75)])
    for known in (0, 1):
        result = await world.store.import_rollouts([given])
        assert result.known_count == known
    found = await world.store.get_rollout("r")
    assert (found.reward, found.attempt.message.reward_source) == (0.75, REWARD_SOURCE_SPANS)
    assert [r.rollout_id for r in await world.store.list_rollouts(min_reward=0.75)] == ["r"]


async def test_an_import_with_another_reward_is_another_rollout(world: World) -> None:
    await world.store.import_rollouts([imported("r", reward=0.5)])
    async with refused(world, AlreadyExistsError, "ROLLOUT_EXISTS"):
        await world.store.import_rollouts([imported("r", reward=0.6)])
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "reward"):
        await world.store.import_rollouts([imported("q", reward=float("inf"))])


async def test_exports_hold_rewards_and_come_back_the_same(world: World) -> None:
    _, attempt = await claim(world)
    await add(world, attempt, reward_span(1, 0.25))
    where = (attempt.rollout_id, attempt.attempt_id)
    await world.store.update_attempt(*where, status="succeeded", scores={"s": 2.0})
    await scored(world, 1.5)
    lines = []
    for spans in (False, True):
        exported = [r async for r in world.store.export_rollouts(spans=spans)]
        assert [r.reward for r in exported] == [0.25, 1.5]
        rows = [datasets.encode(r) for r in exported]
        lines.append(rows)
        (told,) = json.loads(rows[0])["attempts"]
        assert (told["reward"], told["reward_source"], told["scores"]) == (
            0.25,
            "spans",
            {"s": 2.0},
        )
        result = await world.store.import_rollouts([datasets.decode(row) for row in rows])
        assert result.known_count == 2
    await world.store.delete_rollouts([attempt.rollout_id])
    await world.store.import_rollouts([datasets.decode(lines[0][0])])
    record = await stored(world, attempt)
    assert (record.reward, record.reward_source) == (0.25, REWARD_SOURCE_SPANS)
    await add(world, attempt, reward_span(7, 0.3))
    assert (await stored(world, attempt)).reward_source == REWARD_SOURCE_SPANS
