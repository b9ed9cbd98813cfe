"""Repairs a data file: removes unreadable records, and rebuilds columns and counters.

It is meant for files in which an earlier version left parts of removed rollouts, and for records damaged by a disk. Columns
are rebuilt from records, never records from columns.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message
from lightningstore.service.rules import measures
from lightningstore.service.rules.copies import copied
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.rules.rows import AttemptRow, GroupRow, RolloutRow
from lightningstore.service.rules.statuses import QUEUED
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.commits import (
    COLUMNS,
    PLAIN,
    ZLIB,
    attempt_values,
    group_values,
    rollout_values,
)
from lightningstore.service.storage.sqlite.consumers import correct_consumers
from lightningstore.service.storage.sqlite.filters import marks
from lightningstore.service.storage.sqlite.groups import GROUPS, group_columns
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch
from lightningstore.v1.worker_pb2 import Worker

#: Suffix of the copy of the file that is kept.
COPY_ENDING = ".before-repair"
_OWNED = dict.fromkeys(("attempts", "inputs", "labels", "spans"), "rollout_key")


#: The first and the latest attempt of a rollout.
_ATTEMPTS = (
    "SELECT record FROM attempts WHERE key IN ((SELECT min(key) FROM attempts WHERE rollout_key = ?),"
    " (SELECT max(key) FROM attempts WHERE rollout_key = ?)) ORDER BY key"
)

#: The highest number in use, by the counter that gives it out.
_HIGHEST = {
    "rollout_key": "SELECT max(key) FROM rollouts",
    "attempt_key": "SELECT max(key) FROM attempts",
    "span_key": "SELECT max(key) FROM spans",
    "position": "SELECT max(position) FROM rollouts",
    "completion_number": "SELECT max(completion_number) FROM rollouts",
    "resources_updates": "SELECT max(updated) FROM resources",
    "group_key": "SELECT max(key) FROM groups",
    "group_completion_number": "SELECT max(completion_number) FROM groups",
    "consumer_key": "SELECT max(key) FROM consumers",
}


def repair(path: Path) -> list[str]:
    """Repair a file that no server uses; returns one line for each change, none for a file without defects.

    A copy of the unrepaired file is kept next to it. Raises StorageUnusable if pages are damaged from which no index
    can be rebuilt: restore a backup then. Raises FileExistsError if there is an older copy.
    """
    try:
        if not tools.check(path):
            return []
    except StorageUnusable as error:
        raise StorageUnusable(f"{error}; restore a backup") from error
    copy = path.with_name(path.name + COPY_ENDING)
    lock = datafile.Lock(path)
    try:
        tools.backup(path, copy)
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.text_factory = tools.lenient_text
            connection.execute("BEGIN IMMEDIATE")
            done = [f"{copy}: copy of the file before the repair", *_repair(path, connection)]
            connection.execute("COMMIT")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return done
    except sqlite3.Error as error:
        raise StorageUnusable(
            f"{path} cannot be repaired: {error}; restore a backup. It was not changed"
        ) from error
    finally:
        lock.release()


def _repair(path: Path, connection: sqlite3.Connection) -> list[str]:
    done = _rebuild_indexes(path, connection)
    datafile.migrate(connection, connection.execute("PRAGMA user_version").fetchone()[0])
    done += _correct_types(connection)
    done += _remove_rollouts(connection)
    for table, owner in _OWNED.items():
        where = f"{owner} NOT IN (SELECT key FROM rollouts)"
        done += _delete(connection, table, where, "without a rollout")
    orphans = "attempt_key NOT IN (SELECT key FROM attempts)"
    done += _delete(connection, "spans", orphans, "without an attempt")
    done += _correct_batches(connection)
    for table, key, kind in (
        ("resources", "resources_id", Resources),
        ("workers", "worker_id", Worker),
    ):
        done += _remove_records(connection, table, key, kind)
    wrong = (
        "(typeof(digest), typeof(time_ns), typeof(answer)) <> ('integer', 'integer', 'blob')"
        " OR (typeof(method), typeof(request_id)) <> ('text', 'text')"
    )
    done += _delete(connection, "requests", wrong, "with values of the wrong type")
    done += _correct_columns(connection)
    done += _correct_groups(connection)  # which group a rollout is in is known now
    done += correct_consumers(connection)  # and so are the items of deliveries
    done += _correct_labels(connection)
    return done + _correct_counters(connection)


def _rebuild_indexes(path: Path, connection: sqlite3.Connection) -> list[str]:
    """Rebuild indexes that disagree with their tables. Raises StorageUnusable if that does not help."""

    def whole() -> bool:
        return connection.execute("PRAGMA integrity_check(1)").fetchall() == [("ok",)]

    if whole():
        return []
    connection.execute("REINDEX")
    if not whole():
        raise StorageUnusable(f"{path} has damaged pages: restore a backup. It was not changed")
    return ["the indexes were rebuilt"]


def _correct_types(connection: sqlite3.Connection) -> list[str]:
    """Convert values of the wrong type whose right value is known. The others are rebuilt or removed later."""
    done = 0
    queued = ", ".join(map(str, QUEUED))
    for text in (
        "UPDATE inputs SET input_json = CAST(input_json AS BLOB) WHERE typeof(input_json) = 'text'",
        # Rollouts that are in the queue go to its end.
        (
            f"UPDATE rollouts SET position = CASE WHEN status IN ({queued}) THEN key + coalesce("
            "(SELECT max(position) FROM rollouts WHERE typeof(position) = 'integer'), 0) ELSE 0 END"
            " WHERE typeof(position) <> 'integer'"
        ),
        "UPDATE rollouts SET available_ns = 0 WHERE typeof(available_ns) <> 'integer'",
        "UPDATE attempts SET last_sequence_id = 0 WHERE typeof(last_sequence_id) <> 'integer'",
        "UPDATE resources SET updated = key WHERE typeof(updated) <> 'integer'",
    ):
        done += connection.execute(text).rowcount
    return [f"{done} values of the wrong type were converted"] if done else []


def _remove_rollouts(connection: sqlite3.Connection) -> list[str]:
    """Remove rollouts without an input, and those with an unreadable record or attempt."""
    damaged: dict[int, str] = {}
    for key, rollout_id, record in connection.execute(
        "SELECT key, rollout_id, record FROM rollouts"
    ):
        rollout = _read(Rollout, record)
        if rollout is None or rollout.rollout_id != rollout_id:
            damaged[key] = f"rollout {rollout_id!r} was removed: its record cannot be read"
    for key, rollout_id, data in connection.execute(
        "SELECT r.key, r.rollout_id, coalesce(i.input_json, '') FROM rollouts r"
        " LEFT JOIN inputs i ON i.rollout_key = r.key"
    ):
        defect = "is missing" if data == "" else tools.input_defect(data)
        if defect:
            damaged.setdefault(key, f"rollout {rollout_id!r} was removed: its input {defect}")
    for key, rollout_id, record in connection.execute(
        "SELECT r.key, r.rollout_id, a.record FROM attempts a JOIN rollouts r ON r.key = a.rollout_key"
    ):
        attempt = _read(Attempt, record)
        if attempt is None or attempt.rollout_id != rollout_id:
            damaged.setdefault(
                key, f"rollout {rollout_id!r} was removed: an attempt cannot be read"
            )
    keys = [(key,) for key in damaged]
    connection.executemany("DELETE FROM rollouts WHERE key = ?", keys)
    for table, owner in _OWNED.items():
        connection.executemany(f"DELETE FROM {table} WHERE {owner} = ?", keys)
    return list(damaged.values())


def _correct_batches(connection: sqlite3.Connection) -> list[str]:
    """Remove batches of spans that are unreadable or belong to another attempt; correct columns of the others."""
    removed: list[tuple[Any, ...]] = []
    corrected: list[tuple[Any, ...]] = []
    for key, encoding, rollout_id, record, data, *columns in connection.execute(
        "SELECT s.key, s.encoding, r.rollout_id, a.record, s.data, s.first_sequence_id,"
        " s.last_sequence_id, s.contiguous, s.span_count, s.span_ids FROM spans s"
        " JOIN rollouts r ON r.key = s.rollout_key JOIN attempts a ON a.key = s.attempt_key"
    ):
        batch = _batch(encoding, data)
        attempt_id = Attempt.FromString(record).attempt_id
        if batch is None or (batch.rollout_id, batch.attempt_id) != (rollout_id, attempt_id):
            removed.append((key,))
        elif (right := tools.batch_columns(batch, columns[0])) != columns:
            corrected.append((*right, key))
    connection.executemany("DELETE FROM spans WHERE key = ?", removed)
    connection.executemany(
        "UPDATE spans SET first_sequence_id = ?, last_sequence_id = ?, contiguous = ?,"
        " span_count = ?, span_ids = ? WHERE key = ?",
        corrected,
    )
    done = _told(len(removed), "batches of spans", "that could not be read")
    return done + ([f"{len(corrected)} batches of spans were corrected"] if corrected else [])


def _batch(encoding: Any, data: Any) -> SpanBatch | None:
    if encoding not in (PLAIN, ZLIB):
        return None
    try:
        plain = zlib.decompress(data) if encoding == ZLIB else data
    except (zlib.error, TypeError):
        return None
    request = _read(IngestSpansRequest, plain)
    return request.batch if request is not None else None


def _remove_records(
    connection: sqlite3.Connection, table: str, key: str, kind: type[Message]
) -> list[str]:
    rows = connection.execute(f"SELECT rowid, {key}, record FROM {table}").fetchall()
    damaged = [(i,) for i, name, record in rows if getattr(_read(kind, record), key, None) != name]
    connection.executemany(f"DELETE FROM {table} WHERE rowid = ?", damaged)
    return _told(len(damaged), table, "that could not be read")


def _correct_groups(connection: sqlite3.Connection) -> list[str]:
    """Remove groups that cannot be read; rewrite the columns of the others, and the numbers of their members."""
    removed, corrected = [], []
    rows = connection.execute(GROUPS.replace("SELECT ", "SELECT g.key, g.deadline_ns, "))
    for key, deadline_ns, *columns, data in rows.fetchall():
        group = _read(Group, data)
        if group is None or group.group_id != columns[0]:
            removed.append((key,))
            continue
        right = copied(group)
        right.member_count, right.finished_count = columns[-2:]
        values = group_values(GroupRow(key, deadline_ns if type(deadline_ns) is int else 0, right))
        if group_columns(group) != tuple(columns) or values[-2] != deadline_ns:
            corrected.append(values)
    connection.executemany("DELETE FROM groups WHERE key = ?", removed)
    names = COLUMNS["put_groups"]
    text = f"REPLACE INTO groups ({', '.join(names)}) VALUES ({marks(len(names))})"
    connection.executemany(text, corrected)
    done = _told(len(removed), "groups", "that could not be read")
    return done + ([f"{len(corrected)} groups were corrected"] if corrected else [])


def _delete(connection: sqlite3.Connection, table: str, where: str, why: str) -> list[str]:
    count = connection.execute(f"DELETE FROM {table} WHERE {where}").rowcount
    return _told(count, "batches of spans" if table == "spans" else table, why)


def _told(count: int, what: str, why: str) -> list[str]:
    return [f"{count} {what} {why} were removed"] if count else []


def _correct_columns(connection: sqlite3.Connection) -> list[str]:
    """Rewrite columns of rollouts, attempts and resources that disagree with their records."""
    rollouts, attempts = _wrong_rollouts(connection), []
    columns = ", ".join(f"a.{column}" for column in COLUMNS["put_attempts"])
    for *stored, spans, last in connection.execute(
        f"SELECT {columns}, coalesce(sum(s.span_count), 0), coalesce(max(s.last_sequence_id), 0)"
        " FROM attempts a LEFT JOIN spans s ON s.attempt_key = a.key GROUP BY a.key"
    ):
        named = dict(zip(COLUMNS["put_attempts"], stored, strict=True))
        attempt = Attempt.FromString(named["record"])
        attempt.span_count = spans
        last = max(named["last_sequence_id"], last)  # noqa: PLW2901
        values = attempt_values(AttemptRow(named["key"], named["rollout_key"], attempt, last))
        if values != tuple(stored):
            attempts.append(values)
    for table, changed in (("rollouts", rollouts), ("attempts", attempts)):
        names = COLUMNS[f"put_{table}"]
        text = f"REPLACE INTO {table} ({', '.join(names)}) VALUES ({marks(len(names))})"
        connection.executemany(text, changed)
    resources = []
    for row, *numbers, data in connection.execute(
        "SELECT rowid, version, updated, record FROM resources"
    ):
        found = Resources.FromString(data)
        # Records of earlier releases do not contain their publish number.
        right = [found.version, found.publish_number or numbers[1]]
        if right != numbers:
            resources.append((*right, row))
    connection.executemany(
        "UPDATE OR REPLACE resources SET version = ?, updated = ? WHERE rowid = ?", resources
    )
    count = len(rollouts) + len(attempts) + len(resources)
    return [f"{count} records and their columns were made to agree"] if count else []


def _correct_labels(connection: sqlite3.Connection) -> list[str]:
    """Write the rows of labels anew where they disagree with the records of their rollouts."""
    wrong = list(tools.wrong_labels(connection))
    for key, labels in wrong:
        connection.execute("DELETE FROM labels WHERE rollout_key = ?", [key])
        rows = [(key, name, value) for name, value in labels.items()]
        names = ", ".join(COLUMNS["put_labels"])
        connection.executemany(f"INSERT INTO labels ({names}) VALUES (?, ?, ?)", rows)
    return [f"the labels of {len(wrong)} rollouts were corrected"] if wrong else []


def _wrong_rollouts(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the right columns of rollouts that disagree with their records."""
    wrong = []
    columns = ", ".join(COLUMNS["put_rollouts"])
    for stored in connection.execute(f"SELECT {columns} FROM rollouts"):
        named = dict(zip(COLUMNS["put_rollouts"], stored, strict=True))
        record = Rollout.FromString(named["record"])
        row = RolloutRow(named["key"], record, named["position"], named["available_ns"])
        row = row._replace(measures=_measures(connection, row))
        if (values := rollout_values(row)) != stored:
            wrong.append(values)
    return wrong


def _measures(connection: sqlite3.Connection, row: RolloutRow) -> measures.Measures:
    found = [
        Attempt.FromString(data)
        for (data,) in connection.execute(_ATTEMPTS, [row.key] * 2).fetchall()
    ]
    return measures.of(row.rollout, found[0], found[-1]) if found else measures.NONE


def _correct_counters(connection: sqlite3.Connection) -> list[str]:
    """Recount everything. Keys and numbers that were given out are not reused."""
    (text,) = connection.execute("SELECT value FROM meta WHERE name = 'counters'").fetchone()
    try:
        old: dict[str, Any] = dict(json.loads(text))
    except (ValueError, TypeError):
        old = {}
    new = dict(old)
    for name in ("rollouts", "attempts"):
        query = f"SELECT status, count(*) FROM {name} GROUP BY status"
        new[name] = {str(status): count for status, count in connection.execute(query)}
    for name, query in _HIGHEST.items():
        (highest,) = connection.execute(query).fetchone()
        new[name] = max(int(old.get(name) or 0), highest or 0)
    (spans, size) = connection.execute(
        "SELECT coalesce(sum(span_count), 0), coalesce(sum(length(data)), 0) FROM spans"
    ).fetchone()
    if spans != old.get("spans"):
        new["spans"], new["span_bytes"] = spans, size
    connection.execute(
        "DELETE FROM meta WHERE name = 'leaving'"
    )  # their spans have been deleted above
    connection.execute("UPDATE meta SET value = ? WHERE name = 'counters'", [json.dumps(new)])
    return ["the counters were corrected"] if new != old else []


def _read(kind: type[Message], record: bytes) -> Any:
    """Return a stored message, None if the bytes cannot be parsed."""
    try:
        return kind.FromString(record)
    except (DecodeError, TypeError):
        return None
