"""Eviction of spans from memory: whose go first, how far, and what stays."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import FailedPreconditionError
from lightningstore.service.server.config import Config, memory_bytes
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from pydantic import ValidationError

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, names, query, refused

pytestmark = pytest.mark.asyncio

#: Ten batches of a kilobyte fit; eviction stops at six.
SETTINGS = {"eviction_threshold": 11_000, "safe_threshold": 6_600}


@pytest_asyncio.fixture(params=["memory-inprocess", "memory-grpc"])
async def small(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    world = World(request.param, tmp_path, **SETTINGS)
    await world.start()
    yield world
    await world.stop()


def kilobyte(rollout_id: str, attempt_id: str) -> SpanBatch:
    sent = batch(rollout_id, attempt_id, "k")
    value = AnyValue(bytes_value=bytes(900))
    sent.spans[0].attributes.append(KeyValue(key="x", value=value))
    return sent


async def live(world: World, count: int) -> list[tuple[str, str]]:
    """Return claimed rollouts, each a second older than the next."""
    found = []
    for _ in range(count):
        rollout, attempt = await claim(world)
        found.append((rollout.rollout_id, attempt.attempt_id))
        await world.advance(1)
    return found


async def fill(world: World, *ids: tuple[str, str], times: int = 1) -> None:
    for one in ids:
        for _ in range(times):
            await world.store.add_spans(kilobyte(*one))


async def evicted(world: World, ids: list[tuple[str, str]]) -> list[int]:
    """Return the places of those that have lost their spans."""
    gone = []
    for place, (rollout_id, _) in enumerate(ids):
        try:
            await query(world, rollout_id)
        except FailedPreconditionError as error:
            assert error.reason == "ERROR_REASON_SPANS_EVICTED"
            assert error.metadata["rolloutId"] == rollout_id
            gone.append(place)
    return gone


async def test_nothing_goes_below_the_threshold(small: World) -> None:
    ids = await live(small, 10)
    await fill(small, *ids)
    assert await evicted(small, ids) == []
    counted = await small.store.get_statistics()
    assert (counted.span_count, counted.evicted_span_count) == (10, 0)
    assert counted.span_bytes <= counted.eviction_threshold_bytes == 11_000
    assert counted.safe_threshold_bytes == 6_600


async def test_oldest_rollouts_go_first_down_to_the_safe_threshold(small: World) -> None:
    ids = await live(small, 12)
    await fill(small, *ids[::-1])
    gone = await evicted(small, ids)
    counted = await small.store.get_statistics()
    assert gone == list(range(len(gone)))
    assert len(gone) >= 4
    assert counted.evicted_span_count == len(gone)
    assert counted.span_count == 12 - len(gone)
    assert counted.span_bytes <= 11_000


async def test_eviction_ends_at_the_safe_threshold(small: World) -> None:
    ids = await live(small, 30)
    for place, one in enumerate(ids):
        await fill(small, one)
        counted = await small.store.get_statistics()
        if counted.evicted_span_count:
            size = counted.span_bytes / counted.span_count
            assert 6_600 - size < counted.span_bytes <= 6_600
            assert await evicted(small, ids) == list(range(counted.evicted_span_count))
            assert place >= 9
            return
    pytest.fail("nothing was evicted")


async def test_finished_rollouts_go_before_live_ones(small: World) -> None:
    ids = await live(small, 10)
    for place in (7, 3):
        await small.store.update_attempt(*ids[place], status="succeeded")
    await small.store.cancel_rollouts([ids[5][0]])
    await fill(small, *ids)
    await fill(small, ids[9], times=1)
    await fill(small, ids[8], times=1)
    gone = await evicted(small, ids)
    assert {3, 5, 7} <= set(gone)
    assert [place for place in gone if place not in (3, 5, 7)] == list(range(len(gone) - 3))


async def test_rollout_that_was_reopened_is_live_again(small: World) -> None:
    ids = await live(small, 3)
    for one in ids[:2]:
        await small.store.update_attempt(*one, status="succeeded")
    await fill(small, ids[0], ids[2], times=2)
    await fill(small, ids[1], times=6)
    await small.store.start_attempt(ids[0][0])
    await fill(small, ids[2], times=2)
    assert await evicted(small, ids) == [1]


async def test_other_records_of_an_evicted_rollout_stay(small: World) -> None:
    ids = await live(small, 12)
    await fill(small, *ids)
    rollout_id, attempt_id = ids[0]
    assert 0 in await evicted(small, ids)
    stored = await small.store.get_rollout(rollout_id)
    assert (stored.status, stored.input) == ("running", {"task": 1})
    assert (await small.store.get_attempt(rollout_id, attempt_id)).span_count == 1
    async with refused(small, FailedPreconditionError, "SPANS_EVICTED", rollout_id):
        await query(small, rollout_id, attempt_id, name="k")
    update = await small.store.update_attempt(rollout_id, attempt_id, status="succeeded")
    assert update.attempt.status == "succeeded"


async def test_evicted_rollout_takes_spans_and_numbers_still(small: World) -> None:
    ids = await live(small, 12)
    await fill(small, *ids)
    (allocated,) = await small.store.allocate_sequence_ids([(*ids[0], 1)])
    assert allocated.first_sequence_id == 2
    result = await small.store.add_spans(batch(*ids[0], "later"))
    assert result.accepted_count == 1
    # What is there is not all there was, so it is not shown as if it were.
    async with refused(small, FailedPreconditionError, "SPANS_EVICTED"):
        await names(small, ids[0][0])


async def test_rollout_larger_than_the_threshold_does_not_stop_the_store(small: World) -> None:
    ids = await live(small, 2)
    await fill(small, ids[0], times=40)
    counted = await small.store.get_statistics()
    assert counted.span_bytes <= 11_000
    await fill(small, ids[1])
    assert await names(small, ids[1][0]) == ["k"]


async def test_sqlite_never_evicts(tmp_path: Path) -> None:
    world = World("sqlite-grpc", tmp_path, **SETTINGS)
    await world.start()
    try:
        ids = await live(world, 12)
        await fill(world, *ids)
        assert await evicted(world, ids) == []
        counted = await world.store.get_statistics()
        assert (counted.span_count, counted.evicted_span_count) == (12, 0)
        assert counted.eviction_threshold_bytes == 0
    finally:
        await world.stop()


@pytest.mark.parametrize(
    "settings",
    [
        {"eviction_threshold": 0},
        {"eviction_threshold": -0.5},
        {"eviction_threshold": -1},
        {"eviction_threshold": 1.5},
        {"safe_threshold": 0},
        {"safe_threshold": -3},
        {"safe_threshold": 1.5},
        {"safe_threshold": 1.0},
        {"eviction_threshold": 1000, "safe_threshold": 1000},
        {"eviction_threshold": 1000, "safe_threshold": 2000},
        {"eviction_threshold": float("nan")},
        {"eviction_threshold": float("inf")},
    ],
    ids=str,
)
async def test_thresholds_that_make_no_sense_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError) as caught:
        Config(backend="memory", **settings)
    assert "threshold" in str(caught.value)


async def test_thresholds_are_ratios_up_to_one_and_bytes_above() -> None:
    default = Config(backend="memory")
    assert default.eviction_bytes == int(0.7 * memory_bytes())
    assert default.safe_bytes == int(0.8 * default.eviction_bytes)
    given = Config(backend="memory", eviction_threshold=0.5, safe_threshold=12_345)
    assert given.eviction_bytes == int(0.5 * memory_bytes())
    assert given.safe_bytes == 12_345


async def test_spans_stay_until_a_consumer_has_acknowledged_them(small: World) -> None:
    await small.store.create_consumer("trainer", after_completion_number=0)
    ids = await live(small, 3)
    await fill(small, *ids, times=3)
    await small.store.update_attempt(*ids[0], status="succeeded")
    await fill(small, ids[2], times=3)
    assert 0 not in await evicted(small, ids)
    await small.store.acknowledge("trainer", await small.store.pull_finished("trainer"))
    await fill(small, ids[2], times=9)
    assert 0 in await evicted(small, ids)
