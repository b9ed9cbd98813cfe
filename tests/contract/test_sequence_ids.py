"""Sequence ids: given, mixed, handed out, and what they do to the order of spans."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    SequenceIdRange,
)

from tests.contract.conftest import World
from tests.contract.helpers import batch, claim, enqueue, names, query, refused

pytestmark = pytest.mark.asyncio


async def numbered(world: World, rollout_id: str) -> list[tuple[str, int]]:
    return [(span.name, span.sequence_id) for span in await query(world, rollout_id)]


async def send(world: World, ids: tuple[str, str], *texts: str, numbers: tuple[int, ...] = ()):
    return await world.store.add_spans(batch(*ids, *texts, numbers=numbers))


async def attempt_ids(world: World) -> tuple[str, str]:
    rollout, attempt = await claim(world)
    return rollout.rollout_id, attempt.attempt_id


async def allocate(world: World, ids: tuple[str, str], count: int) -> SequenceIdRange:
    (allocated,) = await world.store.allocate_sequence_ids([(*ids, count)])
    return allocated


async def test_spans_without_numbers_get_the_next_ones_in_order(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "a", "b")
    await send(world, ids, "c")
    assert await numbered(world, ids[0]) == [("a", 1), ("b", 2), ("c", 3)]


async def test_given_numbers_are_kept_and_order_the_spans(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "c", "a", "b", numbers=(30, 10, 20))
    assert await numbered(world, ids[0]) == [("a", 10), ("b", 20), ("c", 30)]


async def test_numbers_go_on_above_the_highest_given(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "b", "a", numbers=(50, 7))
    await send(world, ids, "c")
    assert await numbered(world, ids[0]) == [("a", 7), ("b", 50), ("c", 51)]


async def test_zero_means_the_next_number(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "a", "b", "c", "d", numbers=(0, 10, 0, 3))
    assert await numbered(world, ids[0]) == [("a", 1), ("d", 3), ("b", 10), ("c", 11)]
    await send(world, ids, "e", numbers=(0,))
    assert (await numbered(world, ids[0]))[-1] == ("e", 12)


async def test_batches_out_of_order_are_merged(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "e", "f", numbers=(5, 6))
    await send(world, ids, "a", "b", numbers=(1, 2))
    await send(world, ids, "c", "d", numbers=(3, 4))
    assert "".join(await names(world, ids[0])) == "abcdef"


async def test_overlapping_batches_are_merged_in_order(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "a", "d", "i", numbers=(1, 4, 9))
    await send(world, ids, "b", "h", numbers=(2, 8))
    await send(world, ids, "c", "e", "g", numbers=(3, 5, 7))
    await send(world, ids, "f", numbers=(6,))
    await send(world, ids, "j")
    assert "".join(await names(world, ids[0])) == "abcdefghij"


async def test_long_batch_around_many_short_ones(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "first", "last", numbers=(1, 1000))
    for n in range(2, 30):
        await send(world, ids, str(n), numbers=(n,))
    got = await names(world, ids[0])
    assert got == ["first", *map(str, range(2, 30)), "last"]


async def test_equal_numbers_go_by_start_time(world: World) -> None:
    ids = await attempt_ids(world)
    late = batch(*ids, "late", "later", numbers=(3, 3))
    late.spans[0].start_time_unix_nano, late.spans[1].start_time_unix_nano = 500, 900
    early = batch(*ids, "early", "middle", numbers=(3, 3))
    early.spans[0].start_time_unix_nano, early.spans[1].start_time_unix_nano = 100, 700
    await world.store.add_spans(late)
    await world.store.add_spans(early)
    assert await names(world, ids[0]) == ["early", "late", "middle", "later"]


@pytest.mark.parametrize("numbers", [(1,), (1, 2, 3), (-1, 1), (1, -5), (1, (1 << 63) - 1)])
async def test_bad_numbers_refuse_the_batch(world: World, numbers: tuple[int, ...]) -> None:
    ids = await attempt_ids(world)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "batch.sequence_ids"):
        await send(world, ids, "a", "b", numbers=numbers)
    await send(world, ids, "a")
    assert await numbered(world, ids[0]) == [("a", 1)]


async def test_counter_stays_where_it_is_for_duplicates(world: World) -> None:
    ids = await attempt_ids(world)
    sent = batch(*ids, "a", numbers=(1,))
    await world.store.add_spans(sent)
    sent.sequence_ids[0] = 100
    await world.store.add_spans(sent)
    await send(world, ids, "b")
    assert await numbered(world, ids[0]) == [("a", 1), ("b", 2)]


async def test_attempts_count_for_themselves(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "a", "b")
    second = await world.store.start_attempt(ids[0])
    await send(world, (ids[0], second.attempt.attempt_id), "c")
    numbers = [s.sequence_id for s in await query(world, ids[0], second.attempt.attempt_id)]
    assert numbers == [1]


async def test_allocated_numbers_follow_each_other(world: World) -> None:
    ids = await attempt_ids(world)
    assert await allocate(world, ids, 3) == SequenceIdRange(*ids, 1, 3)
    assert await allocate(world, ids, 1) == SequenceIdRange(*ids, 4, 1)
    await send(world, ids, "a")
    assert await numbered(world, ids[0]) == [("a", 5)]
    await send(world, ids, "b", numbers=(2,))
    assert (await allocate(world, ids, 1)).first_sequence_id == 6


async def test_allocated_numbers_are_above_all_stored_ones(world: World) -> None:
    ids = await attempt_ids(world)
    await send(world, ids, "a", "b", numbers=(77, 12))
    assert (await allocate(world, ids, 2)).numbers == range(78, 80)


async def test_one_attempt_may_occur_twice_in_a_request(world: World) -> None:
    one, two = await attempt_ids(world), await attempt_ids(world)
    ranges = await world.store.allocate_sequence_ids([(*one, 2), (*two, 5), (*one, 1)])
    assert [(r.rollout_id, r.first_sequence_id, r.count) for r in ranges] == [
        (one[0], 1, 2),
        (two[0], 1, 5),
        (one[0], 3, 1),
    ]


async def test_latest_is_answered_with_the_attempts_id(world: World) -> None:
    ids = await attempt_ids(world)
    assert await allocate(world, (ids[0], "latest"), 1) == SequenceIdRange(*ids, 1, 1)


async def test_allocating_is_no_heartbeat(world: World) -> None:
    ids = await attempt_ids(world)
    before = await world.store.get_rollout(ids[0])
    await world.advance(1)
    await allocate(world, ids, 1)
    assert await world.store.get_rollout(ids[0]) == before


async def test_numbers_are_not_handed_out_again_after_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("nothing survives")
    ids = await attempt_ids(world)
    await allocate(world, ids, 10)
    await world.restart()
    assert (await allocate(world, ids, 1)).first_sequence_id == 11
    await send(world, ids, "a")
    await world.restart()
    assert (await allocate(world, ids, 1)).first_sequence_id == 13


async def test_request_id_gets_the_same_numbers(world: World) -> None:
    ids = await attempt_ids(world)
    demands = [(*ids, 4)]
    first = await world.store.allocate_sequence_ids(demands, request_id="r1")
    if world.durable:
        await world.restart()
    assert await world.store.allocate_sequence_ids(demands, request_id="r1") == first
    assert (await allocate(world, ids, 1)).first_sequence_id == 5
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED", "r1"):
        await world.store.allocate_sequence_ids([(*ids, 5)], request_id="r1")


@pytest.mark.parametrize("count", [0, -1, 1_000_001])
async def test_bad_count_is_refused(world: World, count: int) -> None:
    ids = await attempt_ids(world)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "demands[1].count"):
        await world.store.allocate_sequence_ids([(*ids, 1), (*ids, count)])
    assert (await allocate(world, ids, 1_000_000)).numbers == range(1, 1_000_001)


async def test_unknown_attempt_hands_out_nothing(world: World) -> None:
    ids = await attempt_ids(world)
    (waiting,) = await enqueue(world, 1)
    for rollout_id, attempt_id, reason in (
        ("ro-nope", "latest", "ROLLOUT_NOT_FOUND"),
        (ids[0], "at-nope", "ATTEMPT_NOT_FOUND"),
        (waiting, "latest", "ATTEMPT_NOT_FOUND"),
    ):
        async with refused(world, NotFoundError, reason):
            await world.store.allocate_sequence_ids([(*ids, 5), (rollout_id, attempt_id, 1)])
    assert (await allocate(world, ids, 1)).first_sequence_id == 1


@pytest.mark.parametrize("field", ["rollout_id", "attempt_id"])
async def test_missing_id_is_named(world: World, field: str) -> None:
    rollout_id, attempt_id = await attempt_ids(world)
    demand = ("", attempt_id, 1) if field == "rollout_id" else (rollout_id, "", 1)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", f"demands[0].{field}"):
        await world.store.allocate_sequence_ids([demand])


async def test_no_demand_is_no_error(world: World) -> None:
    assert await world.store.allocate_sequence_ids([]) == []


async def test_too_many_demands_are_refused(world: World) -> None:
    ids = await attempt_ids(world)
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE", "10000"):
        await world.store.allocate_sequence_ids([(*ids, 1)] * 10_001)
    assert (await allocate(world, ids, 1)).first_sequence_id == 1
