"""Finished rollouts go when they are too old or too many, the oldest finish first, and live ones never."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import NotFoundError
from lightningstore.service.operations.retention import LOOK_SECONDS
from lightningstore.service.rules.limits import Retention

from tests.contract.conftest import World
from tests.contract.helpers import batch, finish

pytestmark = pytest.mark.asyncio


async def ids(world: World) -> list[str]:
    return [r.rollout_id async for r in world.store.iter_rollouts()]


async def later(world: World, seconds: float) -> None:
    """Let time pass, and a look at what may go end."""
    await world.advance(seconds)
    assert world.service is not None
    await world.service.removal.retain(world.config.retention())
    await world.settle()


@pytest_asyncio.fixture
async def world(way: str, tmp_path: Path) -> AsyncIterator[World]:
    """A world that keeps what has finished for an hour."""
    world = World(way, tmp_path, retain_finished="1h")
    await world.start()
    yield world
    await world.stop()


async def test_server_looks_for_what_may_go_on_its_own(world: World) -> None:
    await world.store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(2)])
    await world.store.cancel_rollouts(["r0"])
    await world.advance(3600)
    while await ids(world) != ["r1"]:
        await world.advance(LOOK_SECONDS)


async def test_finished_rollouts_go_at_their_age_and_live_ones_never(world: World) -> None:
    await world.store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(5)])
    (claimed,) = await world.store.dequeue_rollouts(1)
    await world.store.add_spans(batch(claimed.rollout_id, claimed.attempt.attempt_id, "a", "b"))
    await world.store.update_attempt(claimed.rollout_id, "latest", status="succeeded")  # r0
    await world.advance(1800)
    await finish(world, "r1")
    await world.store.cancel_rollouts(["r2"])
    (running,) = await world.store.dequeue_rollouts(1)  # r3, and r4 waits
    await later(world, 1800 + LOOK_SECONDS)
    assert await ids(world) == ["r1", "r2", "r3", "r4"]
    with pytest.raises(NotFoundError):
        await world.store.get_rollout("r0")
    with pytest.raises(NotFoundError):
        _ = [span async for span in world.store.query_spans("r0")]
    statistics = await world.store.get_statistics()
    assert (statistics.span_count, statistics.message.span_bytes) == (0, 0)
    await later(world, 1800 + LOOK_SECONDS)
    assert await ids(world) == ["r3", "r4"]
    if world.durable:
        await world.restart()
        assert await ids(world) == ["r3", "r4"]
    await world.store.update_attempt("r3", running.attempt.attempt_id, status="succeeded")
    assert (await world.store.get_rollout("r3")).completion_number == 4
    counts = {c.status: c.count for c in (await world.store.get_statistics()).message.rollouts}
    assert sorted(count for count in counts.values() if count) == [1, 1]


async def test_what_was_removed_may_be_enqueued_anew_and_pages_stay_whole(world: World) -> None:
    names = [f"r{n}" for n in range(30)]
    await world.store.enqueue_rollouts([{"input": 1, "rollout_id": i} for i in names])
    await world.store.cancel_rollouts(names[5:25])
    first = await world.store.list_rollouts(page_size=8)
    await later(world, 3600 + LOOK_SECONDS)
    rest = await world.store.list_rollouts(page_size=100, page_token=first.next_page_token)
    assert [r.rollout_id for r in rest] == names[25:]
    await world.store.enqueue_rollouts([{"input": 2, "rollout_id": "r7"}])
    assert await ids(world) == [*names[:5], *names[25:], "r7"]
    newest = await world.store.list_rollouts(page_size=3, order_by="start_time desc")
    assert newest[0].rollout_id == "r7"
    assert (await world.store.get_rollout("r7")).input == 2


async def test_reopened_rollout_and_one_with_a_live_attempt_stay(world: World) -> None:
    await world.store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(2)])
    await finish(world, "r0")
    await world.store.start_attempt("r1")
    await world.store.cancel_rollouts(["r1"])  # its attempt goes on for ten silent minutes at most
    assert world.service is not None
    await world.advance(300)
    await world.store.update_rollout("r0", status="queuing")
    assert await world.service.removal.retain(Retention(finished_seconds=0.0)) == 0
    assert await ids(world) == ["r0", "r1"]


async def test_answer_of_a_repeat_survives_the_removal(world: World) -> None:
    (made,) = await world.store.enqueue_rollouts([{"input": 1, "rollout_id": "r"}], request_id="q")
    await world.store.cancel_rollouts([made.rollout_id])
    assert world.service is not None
    assert await world.service.removal.retain(Retention(finished_seconds=0.0)) == 1
    (again,) = await world.store.enqueue_rollouts([{"input": 1, "rollout_id": "r"}], request_id="q")
    assert again.rollout_id == made.rollout_id
    assert await ids(world) == []


async def test_watch_passes_over_what_was_removed(world: World) -> None:
    names = [f"r{n}" for n in range(4)]
    await world.store.enqueue_rollouts([{"input": 1, "rollout_id": i} for i in names])
    await world.store.cancel_rollouts(names[:2])
    await later(world, 3600 + LOOK_SECONDS)
    await world.store.cancel_rollouts(names[2:])
    if world.durable:
        await world.restart()
    found = []
    async for rollout in world.store.watch_rollouts(0):
        found.append((rollout.rollout_id, rollout.completion_number))
        if len(found) == 2:
            break
    assert found == [("r2", 3), ("r3", 4)]


async def test_file_stays_within_its_size(tmp_path: Path) -> None:
    world = World("sqlite-inprocess", tmp_path, max_db_size="4MB")
    await world.start()
    try:
        await overfill(world)
    finally:
        await world.stop()


async def overfill(world: World) -> None:
    for start in range(0, 300, 20):
        made = await world.store.enqueue_rollouts([{"input": "x" * 50_000}] * 20)
        if start:
            await world.store.cancel_rollouts([r.rollout_id for r in made])
        await later(world, LOOK_SECONDS)
    assert world.service is not None
    assert await world.service.engine.storage.used_bytes() <= 4_000_000
    left = [r async for r in world.store.iter_rollouts()]
    assert len([r for r in left if r.status == "queuing"]) == 20  # these never finished
    numbers = [r.completion_number for r in left if r.completion_number]
    assert numbers == list(range(280 - len(numbers) + 1, 281))  # the newest are left


async def test_what_a_consumer_has_yet_to_acknowledge_stays(world: World) -> None:
    store = world.store
    await store.create_consumer("trainer", modes=["train"], after_completion_number=0)
    await store.create_consumer("groups", unit="group", queues=["q"], after_completion_number=0)
    specs = [{"input": n, "rollout_id": f"r{n}", "mode": "train"} for n in range(3)]
    specs += [{"input": n, "rollout_id": f"g{n}", "group_id": "g", "queue": "q"} for n in range(2)]
    specs.append({"input": 1, "rollout_id": "other"})
    await store.enqueue_rollouts(specs, groups=[{"group_id": "g", "size": 2}])
    await store.cancel_rollouts(["r0", "r1", "r2", "g0", "other"])
    first, second = await store.pull_finished("trainer", 2)
    await store.acknowledge("trainer", first)
    await later(world, 3601 + LOOK_SECONDS)
    assert await ids(world) == ["r1", "r2", "g0", "g1"]
    await store.modify_ack_deadline("trainer", second, 60)
    await store.acknowledge("trainer", second)
    await store.cancel_rollouts(["g1"])
    await later(world, 3601 + LOOK_SECONDS)
    assert await ids(world) == ["r2", "g0", "g1"]
    await store.acknowledge("groups", await store.pull_finished("groups"))
    await later(world, LOOK_SECONDS)
    assert await ids(world) == ["r2"]
    await store.delete_consumer("trainer")
    await later(world, LOOK_SECONDS)
    assert await ids(world) == []
