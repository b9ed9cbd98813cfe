"""GetStatistics and GetServerInfo: they tell what was done."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from pathlib import Path

import pytest
from lightningstore.client import RolloutConfig

from tests.contract.conftest import World
from tests.contract.helpers import RETRY, batch, claim, enqueue, finish

pytestmark = pytest.mark.asyncio


async def test_new_store_counts_nothing(world: World) -> None:
    counted = await world.store.get_statistics()
    assert (counted.rollouts, counted.attempts, counted.workers) == ({}, {}, {})
    for name in (
        "resources_count",
        "queue_depth",
        "last_completion_number",
        "span_count",
        "span_bytes",
        "evicted_span_count",
        "waiter_count",
    ):
        assert getattr(counted, name) == 0, name


async def do_something(world: World) -> None:
    """Leave something of everything in the store."""
    await world.store.add_resources({}, resources_id="r1")
    await world.store.update_resources("r1", {})
    await world.store.add_resources({}, resources_id="r2")
    await world.store.heartbeat("new")
    running, attempt = await claim(world, "w1")
    await world.store.add_spans(batch(running.rollout_id, attempt.attempt_id, "a", "b"))
    await claim(world, "w2")
    slow, _ = await claim(world, "w4", config=RolloutConfig(timeout=1))
    await world.advance(2)
    assert (await world.store.get_rollout(slow.rollout_id)).status == "failed"
    retried, failing = await claim(world, "w3", config=RETRY)
    await world.store.update_attempt(retried.rollout_id, failing.attempt_id, status="failed")
    good, bad, gone = await enqueue(world, 3)
    await finish(world, good)
    await finish(world, bad, "failed")
    await world.store.cancel_rollouts([gone])
    await enqueue(world, 2)


EXPECTED = {
    "rollouts": {
        "running": 1,
        "preparing": 1,
        "requeuing": 1,
        "failed": 2,
        "succeeded": 1,
        "cancelled": 1,
        "queuing": 2,
    },
    "attempts": {"running": 1, "preparing": 1, "failed": 2, "timeout": 1, "succeeded": 1},
    "workers": {"idle": 1, "busy": 2, "unknown": 2},
    "resources_count": 2,
    "queue_depth": 3,
    "last_completion_number": 4,
    "span_count": 2,
    "evicted_span_count": 0,
}


async def test_statistics_equal_what_was_done(world: World) -> None:
    await do_something(world)
    counted = await world.store.get_statistics()
    assert {name: getattr(counted, name) for name in EXPECTED} == EXPECTED
    assert 60 < counted.span_bytes < 1000


async def test_statistics_are_the_same_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    await do_something(world)
    size = (await world.store.get_statistics()).span_bytes
    await world.restart()
    counted = await world.store.get_statistics()
    assert {name: getattr(counted, name) for name in EXPECTED} == EXPECTED
    assert counted.span_bytes == size


async def test_reopened_rollout_is_counted_once(world: World) -> None:
    (a,) = await enqueue(world, 1)
    await finish(world, a)
    await world.store.start_attempt(a)
    counted = await world.store.get_statistics()
    assert counted.rollouts == {"preparing": 1}
    assert counted.attempts == {"succeeded": 1, "preparing": 1}
    assert counted.last_completion_number == 1
    await world.store.update_rollout(a, status="queuing")
    counted = await world.store.get_statistics()
    assert (counted.rollouts, counted.queue_depth) == ({"queuing": 1}, 1)


async def test_finishes_of_the_last_minute(world: World) -> None:
    first, second, third = await enqueue(world, 3)
    await finish(world, first)
    await world.store.cancel_rollouts([second])
    assert (await world.store.get_statistics()).finished_last_minute_count == 2
    await world.advance(40)
    await world.store.start_attempt(first)  # reopened, it finishes once more
    assert (await world.store.get_statistics()).finished_last_minute_count == 2
    await world.store.update_attempt(first, "latest", status="succeeded")
    assert (await world.store.get_statistics()).finished_last_minute_count == 3
    await world.advance(25)
    assert (await world.store.get_statistics()).finished_last_minute_count == 1
    await finish(world, third)
    await world.advance(61)
    assert (await world.store.get_statistics()).finished_last_minute_count == 0


async def test_rollouts_that_wait_for_their_backoff_are_in_the_queue(world: World) -> None:
    from lightningstore.client import RetryBackoff

    config = RolloutConfig(
        max_attempts=2, retry_condition=["failed"], retry_backoff=RetryBackoff(initial_delay=60)
    )
    rollout, _ = await claim(world, config=config)
    await world.store.update_attempt(rollout.rollout_id, "latest", status="failed")
    assert await world.store.dequeue_rollouts(1) == []
    assert (await world.store.get_statistics()).queue_depth == 1


async def test_refused_and_duplicate_spans_are_not_counted(world: World) -> None:
    rollout, attempt = await claim(world)
    sent = batch(rollout.rollout_id, attempt.attempt_id, "a", "b")
    await world.store.add_spans(sent)
    size = (await world.store.get_statistics()).span_bytes
    await world.store.ingest_spans([sent, batch("ro-nope", "at-nope", "x")])
    counted = await world.store.get_statistics()
    assert (counted.span_count, counted.span_bytes) == (2, size)


async def test_waiters_are_counted_while_they_wait(world: World) -> None:
    (a,) = await enqueue(world, 1)
    wait = world.store.wait_for_rollouts([a])
    watch = world.store.watch_rollouts()
    await wait.registered()
    await watch.registered()
    assert (await world.store.get_statistics()).waiter_count == 2
    await watch.aclose()
    await finish(world, a)
    await wait.results()
    await world.settle()
    await world.advance(1)
    while (await world.store.get_statistics()).waiter_count:  # pytest's own timeout ends it
        await asyncio.sleep(0.001)


async def test_uptime_is_the_time_since_the_start(world: World) -> None:
    assert (await world.store.get_statistics()).uptime == 0
    await world.advance(12.5)
    assert (await world.store.get_statistics()).uptime == 12.5
    world.clock.jump_wall(-3600)
    assert (await world.store.get_statistics()).uptime == 12.5
    await world.restart(down=100)
    assert (await world.store.get_statistics()).uptime == 0


async def test_disk_is_that_of_the_data_file(world: World, tmp_path: Path) -> None:
    counted = await world.store.get_statistics()
    if world.backend == "sqlite":
        disk = os.statvfs(tmp_path)
        assert counted.disk_bytes == disk.f_blocks * disk.f_frsize
        assert 0 < counted.disk_free_bytes < counted.disk_bytes
    else:
        assert (counted.disk_free_bytes, counted.disk_bytes) == (0, 0)


async def test_thresholds_and_file_size_belong_to_their_back_ends(world: World) -> None:
    counted = await world.store.get_statistics()
    if world.durable:
        assert counted.file_bytes > 0
        assert (counted.eviction_threshold_bytes, counted.safe_threshold_bytes) == (0, 0)
    else:
        assert counted.file_bytes == 0
        assert 0 < counted.safe_threshold_bytes < counted.eviction_threshold_bytes
        share = counted.safe_threshold_bytes / counted.eviction_threshold_bytes
        assert share == pytest.approx(0.8, abs=1e-6)


async def test_info_tells_what_the_server_is(world: World) -> None:
    info = await world.store.get_server_info()
    assert info.version == version("lightningstore")
    assert info.backend == ("postgresql" if world.backend == "postgres" else world.backend)
    assert info.durability == ("full" if world.durable else "none")
    assert info.store_id
    assert info.message.start_time.ToNanoseconds() == world.clock.wall_ns()
    assert "otlp-grpc" in info.capabilities


async def test_limits_have_the_documented_defaults(world: World) -> None:
    limits = (await world.store.get_server_info()).limits
    mib = 1 << 20
    assert limits._asdict() == {
        "message_bytes": 64 * mib,
        "input_bytes": 16 * mib,
        "span_bytes": 4 * mib,
        "batch_items": 10_000,
        "page_size": 1000,
        "queue_length": 0,
        "connection_streams": 100,
        "pending_bytes": 64 * mib,
        "open_streams": 10_000,
        "resource_versions": 10,
    }


async def test_limits_are_those_that_were_set(way: str, tmp_path: Path) -> None:
    world = World(way, tmp_path, max_batch_items=7, max_queue_length=9, max_span_bytes=500)
    await world.start()
    try:
        limits = (await world.store.get_server_info()).limits
        assert (limits.batch_items, limits.queue_length, limits.span_bytes) == (7, 9, 500)
    finally:
        await world.stop()


async def test_relaxed_durability_is_told(tmp_path: Path) -> None:
    world = World("sqlite-grpc", tmp_path, durability="relaxed")
    await world.start()
    try:
        assert (await world.store.get_server_info()).durability == "relaxed"
    finally:
        await world.stop()


async def test_store_id_lives_as_long_as_the_data(world: World) -> None:
    before = await world.store.get_server_info()
    await world.restart(down=50)
    after = await world.store.get_server_info()
    assert (before.store_id == after.store_id) == world.durable
    assert after.start_time > before.start_time
