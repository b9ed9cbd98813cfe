"""One consumer in memory: what its past costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.service.engine.subscription import Item, Subscription
from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow
from lightningstore.v1.consumer_pb2 import (
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_REDELIVERY,
    DELIVERY_STATE_SET_ASIDE,
    Consumer,
    Delivery,
)

from tests.costs import cost_of, is_about

FEW, MANY = 3000, 12_000
STATES = (DELIVERY_STATE_DELIVERED, DELIVERY_STATE_REDELIVERY)


def consumer(set_aside: int) -> Subscription:
    """Return a consumer with that many items that were set aside, and ten more in each other state."""
    sub = Subscription(ConsumerRow(1, 1, Consumer(name="c")))
    for number in range(1, set_aside + 1):
        put(sub, number, DELIVERY_STATE_SET_ASIDE)
    for number in range(set_aside + 1, set_aside + 21):
        put(sub, number, STATES[number % 2])
    return sub


def put(sub: Subscription, number: int, state: int) -> None:
    row = DeliveryRow(1, number, 1, False, number, Delivery(delivery_id=f"d{number}"))
    sub.put(Item(sub, row, state))


def oldest(sub: Subscription, _last: int) -> list[Item | None]:
    return [sub.oldest()]


def redeliverable(sub: Subscription, _last: int) -> list[Item]:
    return sub.redeliverable(5)


def first_page(sub: Subscription, _last: int) -> list[Item]:
    return sub.page((), 0, 10)


def last_page(sub: Subscription, last: int) -> list[Item]:
    return sub.page((), last - 10, 100)


def delivered(sub: Subscription, _last: int) -> list[Item]:
    return sub.page((DELIVERY_STATE_DELIVERED,), 0, 100)


def changed(sub: Subscription, _last: int) -> list[Any]:
    """Change settings that no state depends on."""
    sub.replace(Consumer(name="c", max_lag=3))
    return [sub.settings.max_lag]


READS = (oldest, redeliverable, first_page, last_page, delivered, changed)


@pytest.mark.asyncio
@pytest.mark.parametrize("read", READS)
async def test_items_that_were_set_aside_add_nothing_to_a_read_of_others(
    read: Callable[[Subscription, int], list[Any]],
) -> None:
    few, many = consumer(FEW), consumer(MANY)
    assert len(read(few, FEW)) == len(read(many, MANY)) > 0

    async def use(sub: Subscription, last: int) -> None:
        read(sub, last)

    cost = await cost_of(lambda: use(few, FEW))
    assert is_about(await cost_of(lambda: use(many, MANY)), cost)


def test_a_limit_of_deliveries_changes_the_states_of_items_that_wait() -> None:
    sub = consumer(3)
    waiting = [item.number for item in sub.page((DELIVERY_STATE_REDELIVERY,), 0, 100)]
    sub.page((), 0, 100)[waiting[0] - 1].record.delivery_count = 2
    assert [item.number for item in sub.replace(Consumer(name="c", max_deliveries=2))] == [
        *(1, 2, 3),
        waiting[0],
    ]
    assert sub.settings.max_deliveries == 2


def test_a_page_is_in_the_order_of_completion_whatever_the_states() -> None:
    sub = consumer(30)
    assert [item.number for item in sub.page((), 0, 45)] == list(range(1, 46))
    assert [item.number for item in sub.page(STATES, 33, 5)] == [34, 35, 36, 37, 38]
    assert [item.number for item in sub.redeliverable(3)] == [31, 33, 35]
    first = sub.oldest()
    assert first is not None
    assert first.number == 31
    sub.take(first)
    first.gone = True
    sub.put(first)
    second = sub.oldest()
    assert second is not None
    assert second.number == 32
