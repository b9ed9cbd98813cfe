"""Consumers: creating, changing and deleting them, and what they deliver."""

from __future__ import annotations

import asyncio

import pytest
from lightningstore.client import (
    AlreadyExistsError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from lightningstore.v1.consumer_pb2 import CreateConsumerRequest, PullFinishedRequest

from tests.contract.conftest import World
from tests.contract.consuming import counts, finished, pull, pulled, pulling, trainer
from tests.contract.helpers import enqueue, finish, refused

pytestmark = pytest.mark.asyncio


async def test_consumer_shows_its_settings(world: World) -> None:
    made = await trainer(
        world,
        unit="group",
        statuses=["succeeded"],
        modes=["train", None],
        queues=["", "gpu"],
        labels={"run": "7"},
        ack_deadline=30,
        max_lag=0,
        on_stale="deliver",
        max_outstanding=8,
        max_deliveries=3,
    )
    assert (made.name, made.unit, made.statuses, made.queues) == (
        *("trainer", "group", ["succeeded"]),
        ["", "gpu"],
    )
    assert (made.modes, made.labels, made.ack_deadline) == (["train", None], {"run": "7"}, 30)
    assert (made.max_lag, made.on_stale, made.max_outstanding) == (0, "deliver", 8)
    assert made.max_deliveries == 3
    assert made.create_time is not None
    assert made.oldest_item_time is None
    assert await world.store.get_consumer("trainer") == made


async def test_defaults(world: World) -> None:
    await finished(world, 2)
    made = await world.store.create_consumer("trainer")
    assert (made.unit, made.ack_deadline, made.max_lag, made.on_stale) == (
        *("rollout", 600, None),
        "skip",
    )
    assert made.after_completion_number == 2  # what finishes from now on
    assert await pulled(world) == []
    (later,) = await finished(world, 1)
    assert await pulled(world) == [later]


async def test_creating_it_again_returns_it(world: World) -> None:
    await trainer(world, queues=["a", "b"], max_lag=4)
    await finished(world, 1, queue="a")
    await pull(world)
    await world.store.update_consumer("trainer", max_lag=9)
    again = await trainer(world, queues=["b", "a"], max_lag=4)
    assert (again.max_lag, again.delivered_count, again.after_completion_number) == (9, 1, 1)
    for other in (
        {"queues": ["a", "b"], "max_lag": 9},
        {"queues": ["a"], "max_lag": 4},
        {"queues": ["a", "b"], "max_lag": 4, "after_completion_number": 1},
        {"queues": ["a", "b"], "max_lag": 4, "unit": "group"},
    ):
        async with refused(world, AlreadyExistsError, "CONSUMER_EXISTS"):
            await trainer(world, **other)


@pytest.mark.parametrize(
    ("name", "options", "field"),
    [
        ("", {}, "consumer.name"),
        ("No", {}, "consumer.name"),
        ("t", {"statuses": ["running"]}, "consumer.filter.statuses[0]"),
        ("t", {"queues": ["No"]}, "consumer.filter.queues[0]"),
        ("t", {"labels": {"": "a"}}, "consumer.filter.labels"),
        ("t", {"unit": 9}, "consumer.unit"),
        ("t", {"on_stale": 9}, "consumer.on_stale"),
        ("t", {"ack_deadline": -1}, "consumer.ack_deadline"),
        ("t", {"ack_deadline": 0}, "consumer.ack_deadline"),
        ("t", {"ack_deadline": 7 * 86400 + 1}, "consumer.ack_deadline"),
        ("t", {"max_lag": -1}, "consumer.max_lag"),
        ("t", {"max_outstanding": -1}, "consumer.max_outstanding"),
        ("t", {"max_deliveries": -1}, "consumer.max_deliveries"),
        ("t", {"after_completion_number": -1}, "consumer.after_completion_number"),
    ],
)
async def test_invalid_consumers(
    world: World, name: str, options: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await world.store.create_consumer(name, **options)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.field_violations] == [field]
    assert list(await world.store.list_consumers()) == []


async def test_fields_of_the_output_are_refused(world: World) -> None:
    request = CreateConsumerRequest()
    request.consumer.name = "t"
    request.consumer.backlog_count = 1
    with pytest.raises(InvalidArgumentError, match="output only"):
        await world.store.call("CreateConsumer", request)


async def test_start_beyond_the_end(world: World) -> None:
    await finished(world, 1)
    async with refused(world, OutOfRangeError, "COMPLETION_NUMBER_BEYOND_END"):
        await trainer(world, after_completion_number=2)


async def test_unknown_consumer(world: World) -> None:
    store = world.store
    for call in (
        lambda: store.get_consumer("nix"),
        lambda: store.update_consumer("nix", max_lag=1),
        lambda: store.delete_consumer("nix"),
        lambda: store.pull_finished("nix"),
        lambda: store.acknowledge("nix", ["a"]),
        lambda: store.modify_ack_deadline("nix", ["a"], 1),
        lambda: store.list_deliveries("nix"),
    ):
        async with refused(world, NotFoundError, "CONSUMER_NOT_FOUND", "nix"):
            await call()  # type: ignore[no-untyped-call]
    await store.delete_consumer("nix", allow_missing=True)


async def test_consumers_are_listed_by_name(world: World) -> None:
    for name in ("c", "a", "b"):
        await world.store.create_consumer(name)
    page = await world.store.list_consumers(page_size=2)
    assert [each.name for each in page] == ["a", "b"]
    rest = await world.store.list_consumers(page_size=2, page_token=page.next_page_token)
    assert ([each.name for each in rest], rest.next_page_token) == (["c"], "")


async def test_a_namespace_has_a_hundred(world: World) -> None:
    for n in range(100):
        await world.store.create_consumer(f"c{n}")
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE"):
        await world.store.create_consumer("more")
    await world.store.create_consumer("c1")


async def test_update_changes_what_the_mask_names(world: World) -> None:
    await trainer(world, ack_deadline=30, max_lag=4, max_outstanding=5, max_deliveries=2)
    changed = await world.store.update_consumer("trainer", max_lag=None, max_outstanding=7)
    assert (changed.max_lag, changed.max_outstanding) == (None, 7)
    assert (changed.ack_deadline, changed.max_deliveries) == (30, 2)
    changed = await world.store.update_consumer("trainer", ack_deadline=None, on_stale="deliver")
    assert (changed.ack_deadline, changed.on_stale) == (600, "deliver")
    async with refused(world, InvalidArgumentError, "FIELD_INVALID"):
        await world.store.update_consumer("trainer", max_lag=-1)


async def test_items_come_in_the_order_of_completion(world: World) -> None:
    await trainer(world)
    ids = await enqueue(world, 4)
    for rollout_id in reversed(ids):
        await finish(world, rollout_id)
    first = await pull(world, 2)
    assert [delivery.item_id for delivery in first] == [ids[3], ids[2]]
    assert [delivery.completion_number for delivery in first] == [1, 2]
    assert first[0].rollout is not None
    assert first[0].rollout.input == 3
    assert first[0].rollout.latest_attempt is not None
    assert (first[0].state, first[0].delivery_count, first[0].group) == ("delivered", 1, None)
    assert await counts(world) == (2, 4, 2, 0, 0)
    assert await pulled(world) == [ids[1], ids[0]]
    assert await pulled(world) == []


async def test_consumers_are_independent(world: World) -> None:
    await trainer(world)
    ids = await finished(world, 2)
    await world.store.create_consumer("archive", after_completion_number=1)
    assert await pulled(world) == ids
    (delivery,) = await world.store.pull_finished("archive", 9)
    assert delivery.item_id == ids[1]
    await world.store.acknowledge("archive", delivery)
    assert (await counts(world))[2] == 2


async def test_filters(world: World) -> None:
    await trainer(world, statuses=["succeeded"], queues=["q"], modes=["train"], labels={"a": "1"})
    spec = {"queue": "q", "mode": "train", "labels": {"a": "1", "b": "2"}}
    (right,) = await finished(world, 1, **spec)
    await finished(world, 1, "failed", **spec)
    for other in ({"queue": ""}, {"mode": "val"}, {"labels": {"b": "2"}}):
        await finished(world, 1, **{**spec, **other})
    assert (await counts(world))[0] == 1
    late = await world.store.create_consumer(
        *("late",),
        statuses=["succeeded"],
        queues=["q"],
        modes=["train"],
        labels={"a": "1"},
        after_completion_number=0,
    )
    assert (late.backlog_count, late.outstanding_count) == (1, 1)
    assert await pulled(world) == [right]
    assert await pulled(world) == []


async def test_a_filter_follows_updates(world: World) -> None:
    await trainer(world, labels={"a": "1"})
    first, second = await finished(world, 2, labels={"a": "1"})
    (third,) = await finished(world, 1)
    await world.store.update_rollout(first, labels={})
    await world.store.update_rollout(third, labels={"a": "1"})
    assert (await counts(world))[0] == 2
    assert await pulled(world) == [second, third]
    await world.store.update_rollout(second, labels={})  # delivered is delivered
    assert (await counts(world))[:3] == (0, 2, 2)


async def test_a_reopened_rollout_is_a_new_item(world: World) -> None:
    await trainer(world)
    first, second = await finished(world, 2)
    await world.store.start_attempt(first)
    assert (await counts(world))[:2] == (1, 2)
    assert await pulled(world) == [second]
    await world.store.update_attempt(first, "latest", status="succeeded")
    (delivery,) = await pull(world)
    assert (delivery.item_id, delivery.completion_number) == (first, 3)


async def test_deleted_rollouts_are_left_out(world: World) -> None:
    await trainer(world)
    first, second = await finished(world, 2)
    await world.store.delete_rollouts([first])
    assert (await counts(world))[:2] == (1, 1)
    assert await pulled(world) == [second]
    await world.store.delete_rollouts([second])
    assert (await counts(world))[:3] == (0, 0, 1)


async def test_pull_waits_for_enough(world: World) -> None:
    await trainer(world)
    await finished(world, 1)
    waiting = await pulling(world, 3, min_items=2, wait=60)
    assert (await counts(world))[2] == 0
    await finished(world, 1)
    assert len(await waiting) == 2


@pytest.mark.parametrize(("partial", "count"), [(False, 0), (True, 1)])
async def test_the_end_of_the_wait(world: World, partial: bool, count: int) -> None:
    await trainer(world)
    await finished(world, 1)
    waiting = await pulling(world, 3, min_items=2, wait=5, partial_ok=partial)
    await world.advance(6)
    assert len(await waiting) == count
    assert (await counts(world))[2] == count


async def test_two_pulls_share_the_items(world: World) -> None:
    await trainer(world)
    one, two = await pulling(world, 2, wait=60), await pulling(world, 2, wait=60)
    ids = await enqueue(world, 4)
    await asyncio.gather(*(finish(world, rollout_id) for rollout_id in ids))
    found = [d.item_id for d in [*await one, *await two]]
    found += await pulled(world)
    assert sorted(found) == sorted(ids)


async def test_deleting_a_consumer_ends_its_pulls(world: World) -> None:
    await trainer(world)
    waiting = await pulling(world, wait=60)
    await world.store.delete_consumer("trainer")
    with pytest.raises(NotFoundError):
        await waiting
    ids = await finished(world, 1)
    assert (await trainer(world)).delivered_count == 0
    assert await pulled(world) == ids


async def test_a_consumer_created_anew_does_not_get_the_pulls_of_the_former(world: World) -> None:
    await trainer(world)
    waiting = await pulling(world, wait=60)
    await asyncio.gather(world.store.delete_consumer("trainer"), trainer(world))
    with pytest.raises(NotFoundError):
        await waiting


async def test_a_pull_that_finds_too_few_wakes_others(world: World) -> None:
    await trainer(world, max_lag=0)
    await world.store.update_resources("policy", {})
    ids = await enqueue(world, 5)
    for rollout_id in ids[:3]:
        await world.store.start_attempt(rollout_id)
    await world.store.update_resources("policy", {})
    for rollout_id in ids[3:]:
        await world.store.start_attempt(rollout_id)
    many, one = await pulling(world, 5, min_items=5, wait=60), await pulling(world, 1, wait=60)
    await world.store.cancel_rollouts(ids)
    async with asyncio.timeout(5):
        assert [delivery.item_id for delivery in await one] == [ids[3]]
    assert not many.done()
    many.cancel()


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"max_items": -1}, "max_items"),
        ({"min_items": -1}, "min_items"),
        ({"max_items": 2, "min_items": 3}, "min_items"),
        ({"request_id": "x" * 65}, "request_id"),
    ],
)
async def test_invalid_pulls(world: World, request_: dict[str, object], field: str) -> None:
    await trainer(world)
    await finished(world, 1)
    with pytest.raises(InvalidArgumentError) as caught:
        await world.store.call(
            "PullFinished",
            PullFinishedRequest(consumer="trainer", **request_),  # type: ignore[arg-type]
        )
    assert [violation.field for violation in caught.value.field_violations] == [field]
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE"):
        await pull(world, 1001)


async def test_repeated_pull_returns_the_same_deliveries(world: World) -> None:
    await trainer(world)
    await finished(world, 3)
    first = await pull(world, 2, request_id="r")
    assert await pull(world, 2, request_id="r") == first
    await world.store.acknowledge("trainer", first[0])
    assert await pull(world, 2, request_id="r") == first[1:]
    async with refused(world, InvalidArgumentError, "REQUEST_ID_REUSED"):
        await pull(world, 1, request_id="r")
    assert (await counts(world))[:3] == (1, 2, 1)


async def test_repeated_pull_does_not_wait_for_what_is_acknowledged(world: World) -> None:
    await trainer(world)
    await finished(world, 1)
    await world.store.acknowledge("trainer", await pull(world, wait=60, request_id="r"))
    async with asyncio.timeout(5):
        assert await pull(world, wait=60, request_id="r") == []


async def test_stale_items_are_skipped(world: World) -> None:
    await trainer(world, max_lag=1)
    await world.store.update_resources("policy", {})
    old = await finished(world, 3)
    await world.store.update_resources("policy", {})
    fresh = await finished(world, 1)
    await world.store.update_resources("policy", {})
    none = await world.store.create_consumer("all", after_completion_number=0)
    assert none.backlog_count == 4
    deliveries = await pull(world, 2)
    assert [(d.item_id, d.lag) for d in deliveries] == [(fresh[0], 1)]
    found = await world.store.get_consumer("trainer")
    assert (found.skipped_count, found.backlog_count, found.outstanding_count) == (3, 0, 1)
    lags = [d.lag for d in await world.store.pull_finished("all", 9)]
    assert lags == [2] * len(old) + [1]


async def test_stale_items_can_be_delivered(world: World) -> None:
    await trainer(world, max_lag=0, on_stale="deliver")
    await world.store.update_resources("policy", {})
    await finished(world, 1)
    await world.store.update_resources("policy", {})
    assert [d.lag for d in await pull(world)] == [1]


async def test_stale_items_do_not_count_as_waited_for(world: World) -> None:
    await trainer(world, max_lag=0)
    await world.store.update_resources("policy", {})
    await finished(world, 2)
    await world.store.update_resources("policy", {})
    await finished(world, 1)
    waiting = await pulling(world, 4, min_items=2, wait=60)
    assert (await world.store.get_consumer("trainer")).skipped_count == 0
    await finished(world, 1)
    assert len(await waiting) == 2
    assert (await world.store.get_consumer("trainer")).skipped_count == 2


async def test_the_oldest_item(world: World) -> None:
    await trainer(world, labels={"a": "1"})
    await finished(world, 1)
    await world.advance(10)
    (first,) = await finished(world, 1, labels={"a": "1"})
    await world.advance(10)
    await finished(world, 1, labels={"a": "1"})
    end_time = (await world.store.get_rollout(first)).end_time
    assert (await world.store.get_consumer("trainer")).oldest_item_time == end_time
    (delivery,) = await pull(world, 1)
    assert (await world.store.get_consumer("trainer")).oldest_item_time == end_time
    await world.store.acknowledge("trainer", delivery)
    later = (await world.store.get_consumer("trainer")).oldest_item_time
    assert later is not None
    assert end_time is not None
    assert later > end_time
