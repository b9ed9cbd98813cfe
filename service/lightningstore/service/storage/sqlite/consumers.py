"""Reads of consumers and deliveries, and checks and repairs of those of a data file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightningstore.service.rules.consumers import delivery_ids
from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.sqlite import commits, records
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite.reader import FileReads
from lightningstore.v1.consumer_pb2 import CONSUMER_UNIT_GROUP, Delivery
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.rollout_pb2 import Rollout

_CONSUMERS = "SELECT key, name, created, record FROM consumers"
_DELIVERIES = "SELECT consumer, number, deadline_ns, gone, end_ns, record FROM deliveries"


class ConsumerReads(FileReads):
    """The part of the back end that reads consumers, all of them when the file is opened.

    Damaged consumers are left out. Of damaged deliveries the rest is returned.
    """

    async def _consumers(self) -> list[ConsumerRow]:
        rows = await self._reader.scan("all_consumers")
        return records.readable("consumer", records.consumer, rows, self._damage.note)

    async def _deliveries(self) -> list[DeliveryRow]:
        rows = await self._reader.scan("all_deliveries")
        note = self._damage.note
        return records.readable("delivery", records.delivery, rows, note, DeliveryRow.damaged)


def check_consumers(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield which consumers and deliveries cannot be read, and which deliveries have no consumer."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < datafile.CONSUMERS_VERSION:
        return
    for what, wrong in (
        ("consumers", len(_unreadable(connection, _CONSUMERS, records.consumer))),
        ("deliveries", len(_unreadable(connection, _DELIVERIES, records.delivery))),
    ):
        if wrong:
            yield f"{what}: the record cannot be read or disagrees with its columns in {wrong} rows"
    query = "SELECT count(*) FROM deliveries WHERE consumer NOT IN (SELECT key FROM consumers)"
    (count,) = connection.execute(query).fetchone()
    if count:
        yield f"{count} deliveries without a consumer"


def correct_consumers(connection: sqlite3.Connection) -> list[str]:
    """Remove consumers that cannot be read and deliveries without a consumer; restore deliveries that cannot be read.

    A delivery whose item has no such completion number is removed.
    """
    names = [(row[1],) for row in _unreadable(connection, _CONSUMERS, records.consumer)]
    connection.executemany("DELETE FROM consumers WHERE name IS ?", names)
    places = [tuple(row[:2]) for row in _unreadable(connection, _DELIVERIES, records.delivery)]
    restored = [row for place in places if (row := _restored(connection, *place)) is not None]
    connection.executemany("DELETE FROM deliveries WHERE consumer IS ? AND number IS ?", places)
    connection.executemany("INSERT INTO deliveries VALUES (?, ?, ?, ?, ?, ?)", restored)
    orphans = "DELETE FROM deliveries WHERE consumer NOT IN (SELECT key FROM consumers)"
    count = connection.execute(orphans).rowcount
    return [
        f"{number} {what}"
        for number, what in (
            (len(names), "consumers that could not be read were removed"),
            (len(places) - len(restored), "deliveries that could not be read were removed"),
            (len(restored), "deliveries that could not be read were restored"),
            (count, "deliveries without a consumer were removed"),
        )
        if number
    ]


def _restored(connection: sqlite3.Connection, key: Any, number: Any) -> tuple[Any, ...] | None:
    """Return the columns of a delivery of the item with this completion number; None if there is none.

    The item waits for redelivery: the cursor of its consumer has passed it.
    """
    consumer = connection.execute(f"{_CONSUMERS} WHERE key IS ?", (key,)).fetchone()
    if consumer is None:
        return None
    by_group = records.consumer(consumer).record.unit == CONSUMER_UNIT_GROUP
    name, table = ("group_id", "groups") if by_group else ("rollout_id", "rollouts")
    query = (
        f"SELECT {name}, record FROM {table} WHERE completion_number > 0 AND completion_number IS ?"
    )
    item = connection.execute(query, (number,)).fetchone()
    if item is None:
        return None
    item_id, stored = item
    end_time = (Group if by_group else Rollout).FromString(stored).end_time
    record = Delivery(
        delivery_id=next(delivery_ids()),
        completion_number=number,
        item_id=item_id,
        delivery_count=1,  # or more
    )
    row = DeliveryRow(key, number, 0, False, nanoseconds(end_time), record)
    return commits.delivery_values(row)


def _unreadable(
    connection: sqlite3.Connection, query: str, parse: Callable[[Sequence[Any]], Any]
) -> list[Sequence[Any]]:
    """Return the rows that cannot be read."""
    found = []
    for row in connection.execute(query).fetchall():
        try:
            parse(row)
        except records.UNREADABLE:
            found.append(row)
    return found
