"""Reads of consumers and deliveries, and checks and repairs of those of a data file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import records
from lightningstore.service.storage.sqlite.reader import FileReads

_CONSUMERS = "SELECT key, name, created, record FROM consumers"
_DELIVERIES = "SELECT consumer, number, deadline_ns, gone, end_ns, record FROM deliveries"


class ConsumerReads(FileReads):
    """The part of the back end that reads consumers, all of them when the file is opened. Damaged ones are left out."""

    async def _consumers(self) -> list[ConsumerRow]:
        rows = await self._reader.scan("all_consumers")
        return records.readable("consumer", records.consumer, rows, self._damage.note)

    async def _deliveries(self) -> list[DeliveryRow]:
        rows = await self._reader.scan("all_deliveries")
        return records.readable("delivery", records.delivery, rows, self._damage.note)


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
    """Remove consumers and deliveries that cannot be read, and deliveries without a consumer."""
    names = [(row[1],) for row in _unreadable(connection, _CONSUMERS, records.consumer)]
    connection.executemany("DELETE FROM consumers WHERE name IS ?", names)
    places = [tuple(row[:2]) for row in _unreadable(connection, _DELIVERIES, records.delivery)]
    connection.executemany("DELETE FROM deliveries WHERE consumer IS ? AND number IS ?", places)
    orphans = "DELETE FROM deliveries WHERE consumer NOT IN (SELECT key FROM consumers)"
    count = connection.execute(orphans).rowcount
    return [
        f"{number} {what} were removed"
        for number, what in (
            (len(names), "consumers that could not be read"),
            (len(places), "deliveries that could not be read"),
            (count, "deliveries without a consumer"),
        )
        if number
    ]


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
