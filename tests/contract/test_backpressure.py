"""Consumers with max_outstanding: which claims wait, and what lets them go on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightningstore.client import Rollout

from tests.contract.conftest import World
from tests.contract.consuming import counts, pull, trainer
from tests.contract.helpers import RETRY, enqueue, poll

pytestmark = pytest.mark.asyncio


async def claim(world: World, limit: int = 100, **options: Any) -> list[str]:
    return [r.rollout_id for r in await world.store.dequeue_rollouts(limit, **options)]


async def report(world: World, rollout_id: str, status: str = "succeeded") -> None:
    await world.store.update_attempt(rollout_id, "latest", status=status)


async def test_claims_stop_at_the_limit(world: World) -> None:
    await trainer(world, max_outstanding=3)
    ids = await enqueue(world, 6)
    assert await claim(world) == ids[:3]
    assert await claim(world) == []
    await report(world, ids[0])
    assert await claim(world) == []
    assert await counts(world) == (1, 3, 0, 0, 0)
    (delivery,) = await pull(world)
    assert await claim(world) == []
    await world.store.acknowledge("trainer", delivery)
    assert await claim(world) == ids[3:4]


async def test_others_are_given_out(world: World) -> None:
    await trainer(world, max_outstanding=1, queues=["q", ""], modes=["train"], labels={"a": "1"})
    spec: dict[str, Any] = {"queue": "q", "mode": "train", "labels": {"a": "1"}}
    held = await enqueue(world, 3, **spec)
    free = []
    for other in ({"queue": "r"}, {"mode": "val"}, {"labels": {"a": "2"}}):
        free += await enqueue(world, 1, **{**spec, **other})
    queues = ["q", "r"]
    assert await claim(world, 1, queues=queues, modes=["train"]) == held[:1]
    assert await claim(world, queues=queues) == free
    assert await claim(world, queues=queues) == []


async def test_priorities_and_order_hold(world: World) -> None:
    await trainer(world, max_outstanding=2, labels={"a": "1"})
    ids = [
        (await enqueue(world, 1, priority=priority, labels=labels))[0]
        for priority, labels in ((0, {"a": "1"}), (5, {}), (5, {"a": "1"}), (9, {"a": "1"}))
    ]
    assert await claim(world) == [ids[3], ids[1], ids[2]]
    await world.store.update_consumer("trainer", max_outstanding=3)
    assert await claim(world) == [ids[0]]


async def test_statuses_count_once_a_rollout_has_finished(world: World) -> None:
    await trainer(world, max_outstanding=1, statuses=["succeeded"])
    ids = await enqueue(world, 2)
    assert await claim(world) == ids[:1]
    waiting = await poll(world, wait=60)
    await report(world, ids[0], "failed")
    assert [r.rollout_id for r in await waiting] == ids[1:]


async def test_retries_are_given_out(world: World) -> None:
    await trainer(world, max_outstanding=1)
    ids = await enqueue(world, 2, config=RETRY)
    assert await claim(world) == ids[:1]
    await report(world, ids[0], "failed")
    assert await counts(world) == (0, 1, 0, 0, 0)
    assert await claim(world) == ids[:1]
    await world.store.update_attempt(ids[0], "latest", status="succeeded")
    assert await claim(world) == []
    await world.store.start_attempt(ids[1])
    await world.store.start_rollout({"n": 1})
    assert (await counts(world))[1] == 3


@pytest.mark.parametrize("how", ["acknowledge", "release", "update", "delete", "rollout", "skip"])
async def test_what_frees_room_wakes_polls(world: World, how: str) -> None:
    await trainer(world, max_outstanding=1, max_lag=0, max_deliveries=1)
    await world.store.update_resources("policy", {})
    ids = await enqueue(world, 2)
    assert await claim(world) == ids[:1]
    await report(world, ids[0])
    delivery = None if how in ("skip", "rollout") else (await pull(world))[0]
    waiting = await poll(world, wait=60)
    await world.settle()
    assert not waiting.done()
    if how == "update":
        await world.store.update_consumer("trainer", max_outstanding=0)
    elif how == "delete":
        await world.store.delete_consumer("trainer")
    elif how == "rollout":
        await world.store.delete_rollouts(ids[:1])
    elif how == "skip":
        await world.store.update_resources("policy", {})
        assert await pull(world) == []
    elif delivery is not None:
        outcome = "consumed" if how == "acknowledge" else "released"  # released: set aside
        await world.store.acknowledge("trainer", delivery, outcome)
    assert [r.rollout_id for r in await waiting] == ids[1:]


async def test_what_is_set_aside_at_its_deadline_frees_room(world: World) -> None:
    await trainer(world, max_outstanding=1, max_deliveries=1, ack_deadline=30)
    ids = await enqueue(world, 2)
    assert await claim(world) == ids[:1]
    await report(world, ids[0])
    await pull(world)
    waiting = await poll(world, wait=600)
    await world.advance(31)
    assert [r.rollout_id for r in await waiting] == ids[1:]


async def test_members_of_begun_groups_are_given_out(world: World) -> None:
    await trainer(world, max_outstanding=2)
    members: list[dict[str, Any]] = [
        {"rollout_id": f"{g}{n}", "input": n, "group_id": g} for g in ("a", "b") for n in range(3)
    ]
    groups = [{"group_id": g, "size": 3} for g in ("a", "b")]
    await world.store.enqueue_rollouts(members, groups=groups)
    (single,) = await enqueue(world, 1, group_id="label")
    assert await claim(world) == ["a0", "a1", "a2"]
    assert (await counts(world))[1] == 3
    await world.store.start_attempt("b1")
    assert await claim(world) == ["b0", "b2"]
    await world.store.update_consumer("trainer", max_outstanding=7)
    assert await claim(world) == [single]


async def test_a_group_that_is_created_later_has_begun(world: World) -> None:
    await trainer(world, max_outstanding=1, unit="group")
    ids = await enqueue(world, 3, group_id="g")
    assert await claim(world, 1) == ids[:1]  # a label only: nothing is limited
    assert (await counts(world))[1] == 0
    await world.store.enqueue_rollouts([], groups=[{"group_id": "g", "size": 3}])
    assert (await counts(world))[1] == 1
    assert await claim(world) == ids[1:]


async def test_groups_are_limited_by_their_members(world: World) -> None:
    await trainer(world, max_outstanding=4, unit="group")
    free = await enqueue(world, 1)
    names = ["a", "b", "c"]
    await world.store.enqueue_rollouts(
        [{"rollout_id": f"{g}{n}", "input": n, "group_id": g} for g in names for n in range(2)],
        groups=[{"group_id": g, "size": 2} for g in names],
    )
    assert await claim(world) == [*free, "a0", "a1", "b0", "b1"]
    waiting = await poll(world, limit=9, wait=60)
    await report(world, "b0")
    await report(world, "b1")
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery)
    assert [r.rollout_id for r in await waiting] == ["c0", "c1"]


async def test_the_first_of_two_limits_counts(world: World) -> None:
    await trainer(world, max_outstanding=5)
    await world.store.create_consumer("judge", max_outstanding=2, queues=["q"])
    ids = await enqueue(world, 4, queue="q")
    assert await claim(world, queues=["q"]) == ids[:2]
    other = await enqueue(world, 4)
    assert await claim(world) == other[:3]
    assert await claim(world) == []


async def test_moving_a_rollout_moves_it_out_of_the_limit(world: World) -> None:
    await trainer(world, max_outstanding=1, labels={"a": "1"})
    ids = await enqueue(world, 3, labels={"a": "1"})
    assert await claim(world) == ids[:1]
    await world.store.update_rollout(ids[2], labels={})
    assert await claim(world) == ids[2:]
    waiting = await poll(world, wait=60)
    await world.store.update_rollout(ids[1], group_id="x", labels={"b": "1"})
    assert [r.rollout_id for r in await waiting] == ids[1:2]


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_new_limit_counts_what_there_is(
    world: World,
    restarted: bool,
) -> None:
    ids = await enqueue(world, 5)
    await claim(world, 2)
    await report(world, ids[0])
    made = await trainer(world, max_outstanding=3)
    assert (made.outstanding_count, made.backlog_count) == (2, 1)
    if restarted and world.durable:
        await world.restart()
    assert await claim(world) == ids[2:3]
    await world.store.update_consumer("trainer", max_outstanding=0)
    assert await claim(world) == ids[3:]
    await world.store.update_consumer("trainer", max_outstanding=1)
    more = await enqueue(world, 1)
    assert await claim(world) == []
    await world.store.delete_consumer("trainer")
    assert await claim(world) == more


async def test_a_pause_and_a_limit(world: World) -> None:
    await trainer(world, max_outstanding=1)
    ids = await enqueue(world, 2)
    waiting: list[asyncio.Task[list[Rollout]]] = []
    await world.store.pause_claims()
    waiting.append(await poll(world, wait=60))
    waiting.append(await poll(world, wait=60))
    await world.store.resume_claims()
    first = await waiting[0]
    await world.settle()
    assert not waiting[1].done()
    await report(world, first[0].rollout_id)
    await world.store.acknowledge("trainer", await pull(world))
    assert [r.rollout_id for r in [*first, *await waiting[1]]] == ids
