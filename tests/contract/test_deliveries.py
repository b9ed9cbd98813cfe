"""Deliveries of consumers: acknowledgements, deadlines, redeliveries, items that are set aside."""

from __future__ import annotations

import pytest
from lightningstore.client import (
    FailedPreconditionError,
    InvalidArgumentError,
    ResourceExhaustedError,
)
from lightningstore.v1.consumer_pb2 import Delivery as Message

from tests.contract.conftest import World
from tests.contract.consuming import counts, finished, pull, pulled, pulling, trainer
from tests.contract.helpers import finish, refused

pytestmark = pytest.mark.asyncio


async def test_acknowledged_items_are_done(world: World) -> None:
    await trainer(world)
    await finished(world, 3)
    one, two, three = await pull(world)
    await world.store.acknowledge("trainer", [one, two.delivery_id, one])
    await world.store.acknowledge("trainer", three, "dropped", note="no reward")
    found = await world.store.get_consumer("trainer")
    assert (found.consumed_count, found.dropped_count) == (2, 1)
    assert await counts(world) == (0, 0, 0, 0, 0)
    await world.advance(601)
    assert await pulled(world) == []
    await world.store.acknowledge("trainer", [])


async def test_acknowledging_changes_all_or_nothing(world: World) -> None:
    await trainer(world)
    await finished(world, 3)
    deliveries = await pull(world)
    ended = deliveries[1]
    await world.store.acknowledge("trainer", ended, request_id="r")
    await world.store.acknowledge("trainer", ended, request_id="r")
    for call in (
        lambda: world.store.acknowledge("trainer", deliveries),
        lambda: world.store.acknowledge("trainer", deliveries, "released"),
        lambda: world.store.modify_ack_deadline("trainer", deliveries, 5),
    ):
        async with refused(world, FailedPreconditionError, "DELIVERY_ENDED") as metadata:
            await call()  # type: ignore[no-untyped-call]
        assert metadata == {"consumer": "trainer", "deliveryIds": ended.delivery_id}
    assert await counts(world) == (0, 2, 2, 0, 0)


async def test_invalid_acknowledgements(world: World) -> None:
    await trainer(world)
    await finished(world, 1)
    (delivery,) = await pull(world)
    store = world.store
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "note"):
        await store.acknowledge("trainer", delivery, note="x" * 257)
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "outcome"):
        await store.acknowledge("trainer", delivery, 9)
    async with refused(world, ResourceExhaustedError, "BATCH_TOO_LARGE"):
        await store.acknowledge("trainer", [str(n) for n in range(1_001)])
    for seconds in (-1, 0, 8 * 86400):
        async with refused(world, InvalidArgumentError, "FIELD_INVALID", "ack_deadline"):
            await store.modify_ack_deadline("trainer", delivery, seconds)
    await store.acknowledge("trainer", delivery)


async def test_a_delivery_comes_again_after_its_deadline(world: World) -> None:
    await trainer(world, ack_deadline=30)
    first, second = await finished(world, 2)
    (old,) = await pull(world, 1)
    await world.advance(29)
    assert await pulled(world) == [second]
    await world.advance(2)
    assert await counts(world) == (0, 2, 1, 1, 0)
    (again,) = await pull(world)
    assert (again.item_id, again.delivery_count) == (first, 2)
    assert again.delivery_id != old.delivery_id
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", old)
    await world.store.acknowledge("trainer", again)


async def test_a_late_acknowledgement_before_the_redelivery_counts(world: World) -> None:
    await trainer(world, ack_deadline=30)
    await finished(world, 2)
    one, two = await pull(world)
    await world.advance(31)
    await world.store.acknowledge("trainer", one)
    until = await world.store.modify_ack_deadline("trainer", two, 60)
    assert await counts(world) == (0, 1, 1, 0, 0)
    (listed,) = await world.store.list_deliveries("trainer")
    assert listed.ack_deadline_time is not None
    assert abs((listed.ack_deadline_time - until).total_seconds()) < 0.001
    assert await pulled(world) == []
    await world.advance(61)
    assert await pulled(world) == [two.item_id]


async def test_deadlines_can_move_both_ways(world: World) -> None:
    await trainer(world)
    await finished(world, 2)
    one, two = await pull(world)
    await world.store.modify_ack_deadline("trainer", one, 5)
    await world.store.modify_ack_deadline("trainer", two, 1200)
    await world.advance(6)
    assert await pulled(world) == [one.item_id]
    await world.advance(1000)
    assert await pulled(world) == [one.item_id]


async def test_waiting_pulls_get_redeliveries(world: World) -> None:
    await trainer(world, ack_deadline=30)
    await finished(world, 2)
    one, two = await pull(world)
    waiting = await pulling(world, 1, wait=600)
    await world.store.acknowledge("trainer", two, "released")
    assert [d.item_id for d in await waiting] == [two.item_id]
    waiting = await pulling(world, 1, wait=600)
    await world.advance(31)
    assert [d.item_id for d in await waiting] == [one.item_id]


async def test_consuming_pulls_again_and_again(world: World) -> None:
    await trainer(world)
    first = await finished(world, 3)
    seen: list[str] = []
    async for deliveries in world.store.consume("trainer", 2):
        seen += [delivery.item_id for delivery in deliveries]
        # Nothing is taken ahead, and what is acknowledged does not come again.
        assert (await counts(world))[2] == len(deliveries)
        await world.store.acknowledge("trainer", deliveries)
        if len(seen) == 3:
            first += await finished(world, 1)
        elif len(seen) == 4:
            break
    assert seen == first
    assert await counts(world) == (0, 0, 0, 0, 0)


async def test_redeliveries_come_first_in_order(world: World) -> None:
    await trainer(world)
    ids = await finished(world, 4)
    deliveries = await pull(world, 3)
    await world.store.acknowledge("trainer", [deliveries[2], deliveries[0]], "released", note="w")
    again = await pull(world)
    assert [d.item_id for d in again] == [ids[0], ids[2], ids[3]]
    assert [d.delivery_count for d in again] == [2, 2, 1]
    assert [d.note for d in again] == ["w", "w", ""]
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", deliveries[0])


async def test_a_released_delivery_has_ended(world: World) -> None:
    await trainer(world)
    await finished(world, 1)
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery, "released")
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", delivery)


async def test_items_are_set_aside(world: World) -> None:
    await trainer(world, max_deliveries=2, ack_deadline=30)
    ids = await finished(world, 2)
    await pull(world)
    await world.advance(31)
    one, two = await pull(world)
    await world.store.acknowledge("trainer", one, "released", note="crashes")
    await world.advance(31)
    assert await counts(world) == (0, 0, 0, 0, 2)
    assert await pulled(world) == []
    aside = await world.store.list_deliveries("trainer", states=["set_aside"])
    assert [(d.item_id, d.note, d.delivery_count) for d in aside] == [
        (ids[0], "crashes", 2),
        (ids[1], "", 2),
    ]
    assert (await world.store.get_consumer("trainer")).oldest_item_time is None
    await world.store.acknowledge("trainer", aside[0], "dropped")
    await world.store.acknowledge("trainer", two, "released")
    (again,) = await pull(world)
    assert (again.item_id, again.delivery_count) == (ids[1], 1)


async def test_a_higher_maximum_delivers_again(world: World) -> None:
    await trainer(world, max_deliveries=1)
    ids = await finished(world, 1)
    (delivery,) = await pull(world)
    await world.store.acknowledge("trainer", delivery, "released")
    assert await pulled(world) == []
    await world.store.update_consumer("trainer", max_deliveries=2)
    assert await pulled(world) == ids
    await world.store.update_consumer("trainer", max_deliveries=1)
    assert (await counts(world))[2] == 1


async def test_a_lower_maximum_ends_no_delivery_twice(world: World) -> None:
    await trainer(world, ack_deadline=30)
    ids = await finished(world, 2)
    one, two = await pull(world)
    await world.store.acknowledge("trainer", one, "released")
    await world.advance(31)
    await world.store.update_consumer("trainer", max_deliveries=1)
    if world.durable:
        await world.restart()
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", one)
    aside = await world.store.list_deliveries("trainer", states=["set_aside"])
    assert [d.item_id for d in aside] == ids
    await world.store.acknowledge("trainer", two)  # it was not released
    await world.store.acknowledge("trainer", aside[0])
    assert await counts(world) == (0, 0, 0, 0, 0)


async def damage(world: World, *numbers: int) -> None:
    """Store deliveries with records that cannot be theirs."""
    assert world.service is not None
    engine = world.service.engine
    sub = engine.live.consumers.get("trainer")
    assert sub is not None
    for number in numbers:
        row = sub.items[number].row()._replace(record=Message(delivery_id="x"))
        engine.changes.deliveries[sub.key, number] = row
        engine.changes.size += 1
    await engine.commit()


@pytest.mark.parametrize("unit", ["rollout", "group"])
async def test_a_damaged_delivery_comes_again(world: World, unit: str) -> None:
    if not world.durable:
        pytest.skip("memory")
    await trainer(world, unit=unit, ack_deadline=60)
    groups = [{"group_id": f"g{n}", "size": 1} for n in range(4)]
    specs = [{"input": n, "group_id": f"g{n}", "rollout_id": f"r{n}"} for n in range(4)]
    await world.store.enqueue_rollouts(specs, groups=groups)
    for n in range(4):
        await finish(world, f"r{n}")
    ids = [f"r{n}" if unit == "rollout" else f"g{n}" for n in range(4)]
    deliveries = await pull(world)
    assert [delivery.item_id for delivery in deliveries] == ids
    await world.store.acknowledge("trainer", deliveries[3])
    await world.store.start_attempt("r2")  # it has another completion number now, or none
    await damage(world, 2, 3)
    await world.restart(down=10)
    assert (await counts(world))[2:] == (2, 0, 0)  # their deadlines have not passed
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", deliveries[1])
    await world.advance(51)
    again = await pull(world)
    assert [(d.item_id, d.delivery_count) for d in again] == [(ids[0], 2), (ids[1], 2)]
    await world.store.acknowledge("trainer", again)
    await world.restart()
    await world.advance(61)
    assert await pulled(world) == []


async def test_deliveries_are_listed_in_pages(world: World) -> None:
    await trainer(world)
    ids = await finished(world, 5)
    deliveries = await pull(world, 4)
    await world.store.acknowledge("trainer", deliveries[1], "released")
    await world.store.acknowledge("trainer", deliveries[2])
    page = await world.store.list_deliveries("trainer", page_size=2)
    assert [d.item_id for d in page] == ids[:2]
    assert [d.state for d in page] == ["delivered", "redelivery"]
    assert page[0].ack_deadline_time is not None
    assert (page[1].ack_deadline_time, page[0].rollout) == (None, None)
    rest = [d async for d in world.store.iter_deliveries("trainer", page_size=2)]
    assert [d.item_id for d in rest] == [ids[0], ids[1], ids[3]]
    waiting = await world.store.list_deliveries("trainer", states=["redelivery"])
    assert [d.item_id for d in waiting] == [ids[1]]
    async with refused(world, InvalidArgumentError, "FIELD_INVALID", "states[0]"):
        await world.store.list_deliveries("trainer", states=[0])
    async with refused(world, InvalidArgumentError, "PAGE_TOKEN_MISMATCH"):
        await world.store.list_deliveries("trainer", states=[1], page_token=page.next_page_token)


async def test_a_reopened_item_is_not_delivered_again(world: World) -> None:
    await trainer(world, ack_deadline=30)
    first, second = await finished(world, 2)
    one, two = await pull(world)
    await world.store.acknowledge("trainer", two, "released")
    for rollout_id in (first, second):
        await world.store.start_attempt(rollout_id)
    assert await counts(world) == (0, 2, 1, 0, 0)
    await world.store.acknowledge("trainer", one)  # of the old delivery
    assert (await world.store.get_consumer("trainer")).consumed_count == 1
    assert await pulled(world) == []
    for rollout_id in (first, second):
        await world.store.update_attempt(rollout_id, "latest", status="succeeded")
    assert await pulled(world) == [first, second]


async def test_a_gone_delivery_ends_at_its_deadline(world: World) -> None:
    await trainer(world, ack_deadline=30)
    (first,) = await finished(world, 1)
    (delivery,) = await pull(world)
    await world.store.delete_rollouts([first])
    assert await counts(world) == (0, 0, 1, 0, 0)
    assert await pull(world, request_id="r") == []
    await world.advance(31)
    assert await counts(world) == (0, 0, 0, 0, 0)
    assert list(await world.store.list_deliveries("trainer")) == []
    async with refused(world, FailedPreconditionError, "DELIVERY_ENDED"):
        await world.store.acknowledge("trainer", delivery)


async def test_everything_survives_a_restart(world: World) -> None:
    if not world.durable:
        pytest.skip("memory")
    await trainer(world, ack_deadline=60, max_deliveries=2, labels={"a": "1"}, max_outstanding=9)
    ids = await finished(world, 7, labels={"a": "1"})
    await finished(world, 1)
    await world.store.start_rollout({"n": 1}, labels={"a": "1"})
    deliveries = await pull(world, 5, request_id="r")
    await world.store.acknowledge("trainer", deliveries[0], request_id="a")
    await world.store.acknowledge("trainer", deliveries[1], "released", note="x")
    await world.store.start_attempt(ids[2])
    before = await world.store.get_consumer("trainer")
    listed = await world.store.list_deliveries("trainer")
    await world.restart(down=30)
    assert await world.store.get_consumer("trainer") == before
    again = await world.store.list_deliveries("trainer")
    for old, new in zip(listed, again, strict=True):
        old.message.ClearField("ack_deadline_time")
        assert bool(new.ack_deadline_time) == (new.state == "delivered")
        new.message.ClearField("ack_deadline_time")
        assert new == old
    await world.store.acknowledge("trainer", deliveries[0], request_id="a")
    assert [d.item_id for d in await pull(world, 5, request_id="r")] == ids[3:5]
    await world.store.acknowledge("trainer", listed[1])  # reopened before the restart
    await world.advance(31)
    assert await pulled(world) == [ids[1], *ids[3:]]


async def test_a_stale_redelivery_takes_no_place(world: World) -> None:
    await trainer(world, max_lag=0)
    await world.store.update_resources("policy", {})
    await finished(world, 2)
    await world.store.acknowledge("trainer", await pull(world), "released")
    await world.store.update_resources("policy", {})
    (fresh,) = await finished(world, 1)
    assert await pulled(world, 1) == [fresh]
    assert (await world.store.get_consumer("trainer")).skipped_count == 2
