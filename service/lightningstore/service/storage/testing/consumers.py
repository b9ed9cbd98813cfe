"""Cases: consumers and their deliveries."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow, RolloutQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, without_faults
from lightningstore.service.storage.testing.records import finished, put, rollout
from lightningstore.service.storage.testing.values import MAX_INT64
from lightningstore.v1.consumer_pb2 import Consumer, Delivery


def consumer(key: int, name: str = "", created: int = 7, **fields: Any) -> ConsumerRow:
    """Return a consumer c{key}, unless it is named."""
    return ConsumerRow(key, created, Consumer(name=name or f"c{key}", **fields))


def delivery(
    key: int, number: int, deadline_ns: int = 5, *, gone: bool = False, **fields: Any
) -> DeliveryRow:
    """Return an item of consumer number `key`."""
    record = Delivery(
        **{
            "delivery_id": f"d{key}-{number}",
            "completion_number": number,
            "item_id": "r",
            **fields,
        }
    )
    return DeliveryRow(key, number, deadline_ns, gone, 9, record)


async def _put(storage: Storage, *rows: ConsumerRow | DeliveryRow, **fields: Any) -> None:
    consumers = {row.record.name: row for row in rows if isinstance(row, ConsumerRow)}
    deliveries = {row[:2]: row for row in rows if isinstance(row, DeliveryRow)}
    await put(storage, consumers=consumers, deliveries=deliveries, **fields)


class ConsumerCases(Cases):
    """Consumers and deliveries, which a store loads when it is opened, and counts of finished rollouts."""

    async def test_consumers_and_deliveries_come_back(self, storage: Storage) -> None:
        _, snapshot = await self.open_at(self.place / "new")
        assert (snapshot.consumers, snapshot.deliveries) == ([], [])
        first, second = consumer(1, consumed_count=1), consumer(2, created=2**32 - 1)
        await _put(storage, first, second, delivery(1, 1), delivery(1, 2), delivery(2, 1))
        changed = consumer(1, consumed_count=3, after_completion_number=MAX_INT64)
        again = delivery(1, 2, 0, gone=True, delivery_count=2)
        last = delivery(2, MAX_INT64, MAX_INT64)
        await _put(storage, changed, again, last, removed_deliveries=[(1, 1), (2, 3)])
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.consumers) == [changed, second]
        assert sorted(snapshot.deliveries) == [again, delivery(2, 1), last]

    async def test_a_consumer_goes_with_its_deliveries(self, storage: Storage) -> None:
        await _put(storage, consumer(1), consumer(2), delivery(1, 1), delivery(1, 2))
        await _put(storage, delivery(2, 1))
        await _put(storage, consumer(3, "c1"), delivery(3, 1), removed_consumers=[1])
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.consumers) == [consumer(2), consumer(3, "c1")]
        assert sorted(snapshot.deliveries) == [delivery(2, 1), delivery(3, 1)]

    async def test_many_deliveries_end_with_one_commit(self, storage: Storage) -> None:
        rows = [delivery(key, number) for key in (1, 2) for number in range(1, 1201)]
        await _put(storage, consumer(1), consumer(2), *rows)
        ended = [row[:2] for row in rows if row.number != 700]
        await _put(storage, removed_deliveries=ended)
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.deliveries) == [delivery(1, 700), delivery(2, 700)]

    async def test_finished_rollouts_are_counted_by_number(self, storage: Storage) -> None:
        rows = [
            *(finished(k, 10 + k, mode=k % 2, queue="q" if k < 4 else "") for k in range(1, 7)),
            rollout(7, mode=1),
        ]
        await put(storage, *rows)

        async def count(completed: tuple[int, int], **query: Any) -> int:
            counts = await storage.count_rollouts(RolloutQuery(completed=completed, **query))
            return sum(counts.values())

        assert await count((0, 100)) == 6
        assert await count((11, 15)) == 4
        assert await count((11, 15), modes=frozenset([1])) == 2
        assert await count((11, 15), queues=frozenset(["q"])) == 2
        assert await count((11, 15), queues=frozenset(["q", ""])) == 4
        assert await count((0, 100), statuses=frozenset([rows[0].rollout.status])) == 6
        assert await count((0, 100), labels=frozenset([("a", "b")])) == 0
        await put(storage, finished(1, 20, mode=1))
        assert await count((0, 19)) == 5

    @without_faults
    async def test_damaged_consumers_are_left_out_and_replaced(self, storage: Storage) -> None:
        await _put(storage, consumer(1), consumer(2), delivery(1, 1), delivery(2, 1))
        storage, snapshot = await self.damaged(storage, "consumer", "c1")
        assert snapshot.consumers == [consumer(2)]
        assert storage.damaged_records == 1
        await _put(storage, consumer(3, "c1"))
        _, snapshot = await self.reopen(storage)
        assert sorted(snapshot.consumers) == [consumer(2), consumer(3, "c1")]
