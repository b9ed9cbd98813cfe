"""Backup, restore, check and vacuum of a data file. None of them needs a server.

Backup and check also read a file that a server has open, through a connection that never writes or checkpoints.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightningstore.service.rules.checks import check_json
from lightningstore.service.rules.errors import FieldInvalid, StorageUnusable
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT
from lightningstore.service.rules.times import nanoseconds
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite.commits import ZLIB
from lightningstore.service.storage.sqlite.consumers import check_consumers
from lightningstore.service.storage.sqlite.filters import marks
from lightningstore.service.storage.sqlite.groups import check_groups
from lightningstore.service.storage.sqlite.records import UNREADABLE
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch
from lightningstore.v1.worker_pb2 import Worker

#: Pages copied between two progress reports: 2 MiB.
PAGES_A_STEP = 256
#: Number of damaged records that are named one by one.
NAMED = 20
#: Tables whose values are checked. The values of `meta` are read one by one.
TABLES = (
    *("rollouts", "inputs", "labels", "attempts", "spans", "resources", "groups"),
    *("consumers", "deliveries", "workers", "requests"),
)
Progress = Callable[[int, int], object]


@contextmanager
def _snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a consistent view of a file, even while a server writes. Raises StorageUnusable."""
    datafile.inspect(path)
    written = path.stat().st_mtime_ns
    alone = _alone(path)
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if alone else ''}"
        with closing(
            sqlite3.connect(uri, uri=True, isolation_level=None, timeout=30)
        ) as connection:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM meta").fetchone()  # the view is taken here
            yield connection
        if alone and path.stat().st_mtime_ns != written:
            raise StorageUnusable(f"{path} was written to meanwhile by a server: try again")
    except (
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # the latter where it quotes a damaged schema
        raise StorageUnusable(f"{path} cannot be read: {error}") from error


def _alone(path: Path) -> bool:
    """Return whether a file has no log, and is in a folder where SQLite cannot create one to read it.

    Raises StorageUnusable if it has a log that cannot be read there.
    """
    place = path.resolve()
    log, index = Path(f"{place}-wal"), Path(f"{place}-shm")
    # If both exist, SQLite creates nothing, and a server may be running.
    if os.access(place.parent, os.W_OK) or (log.exists() and index.exists()):
        return False
    if log.exists() and log.stat().st_size:
        raise StorageUnusable(
            f"{path} has a log, which can be read only in a writable folder: copy both files to one"
        )
    return True


def _silent(_done: int, _all: int) -> None:
    """Ignore progress."""


def draft_of(target: Path) -> Path:
    """Return the path at which a copy is written before it gets its name."""
    return target.with_name(f".{target.name}.{os.getpid()}")


def _copy(path: Path, target: Path, mode: int, progress: Progress = _silent) -> None:
    """Replace a file by a copy of a store with its log, atomically. Raises StorageUnusable."""
    draft = draft_of(target)
    try:
        datafile.forget(draft)  # left by a crash
        datafile.make(draft, mode)
        try:
            with _snapshot(path) as source:
                _fill(draft, source, progress)
            datafile.publish(draft, target)
        finally:
            datafile.forget(draft)
    except OSError as error:
        raise StorageUnusable(
            f"{path} cannot be copied to {target}: {error.strerror or error}; "
            f"{target.parent} must be a writable folder with enough space"
        ) from error


def _fill(draft: Path, source: sqlite3.Connection, progress: Progress) -> None:
    """Copy all pages. Raises OSError for a failing or full disk, sqlite3.Error for a damaged source."""
    try:
        with closing(sqlite3.connect(draft)) as copy:
            source.backup(
                copy,
                pages=PAGES_A_STEP,
                progress=lambda _status, left, total: progress(total - left, total),
                sleep=0,
            )
    except sqlite3.OperationalError as error:
        raise OSError(str(error)) from error


def backup(path: Path, target: Path, progress: Progress = _silent) -> int:
    """Copy a store to a new file with SQLite's online backup, whether or not a server uses it.

    The copy contains everything that was answered when the backup began. It gets its name when it is complete and on
    disk, and is readable by no more users than the store. Returns its size in bytes. Raises StorageUnusable,
    FileExistsError.
    """
    datafile.inspect(path)
    if target.exists():
        raise FileExistsError(f"{target} exists already")
    _copy(path, target, path.stat().st_mode, progress)
    return target.stat().st_size


def restore(source: Path, path: Path, *, replace: bool = False) -> None:
    """Check a backup and copy it to the path of a store. `replace`: also if a file is there.

    The log of the backup is part of it. The new file is readable by no more users than the backup and the replaced
    file. Raises StorageUnusable (a damaged backup, the store itself, a full disk, a file that a server uses),
    FileExistsError.
    """
    found = check(source)
    if found:
        raise StorageUnusable(f"{source} is not a usable backup: {found[0]}")
    mode = source.stat().st_mode
    lock = None
    if path.exists():
        if path.samefile(source):
            raise StorageUnusable(f"{source} is the store itself: name the file of a backup")
        if not replace:
            raise FileExistsError(f"{path} exists already")
        lock = datafile.Lock(path, replaced=True)
        mode &= path.stat().st_mode
    try:
        _copy(source, path, mode)
    finally:
        if lock is not None:
            lock.release()


def vacuum(path: Path) -> tuple[int, int]:
    """Return unused pages to the file system; returns the bytes before and after.

    Raises StorageUnusable, also if a server uses the file or there is none.
    """
    datafile.inspect(path)  # the lock would create a store
    lock = datafile.Lock(path)
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            before = path.stat().st_size
            _sweep(connection)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return before, path.stat().st_size
    except sqlite3.Error as error:
        raise StorageUnusable(f"{path} cannot be vacuumed: {error}") from error
    finally:
        lock.release()


def _sweep(connection: sqlite3.Connection) -> None:
    """Delete the spans of removed rollouts that the server had not deleted yet."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_LEAVING)
    connection.execute("DELETE FROM spans WHERE rollout_key IN (SELECT key FROM leaving)")
    connection.execute("DELETE FROM meta WHERE name = 'leaving'")
    connection.execute("COMMIT")


def check(path: Path) -> list[str]:
    """Return the defects of a file: those that SQLite finds, and counters or columns that disagree with records.

    Raises StorageUnusable if it cannot be read at all.
    """
    with _snapshot(path) as connection:
        connection.text_factory = lenient_text
        found = [row for (row,) in connection.execute("PRAGMA integrity_check") if row != "ok"]
        if not found:
            connection.execute(_LEAVING)
            found += _check_counters(connection)
            for what, query in _NONE.items():
                (count,) = connection.execute(query).fetchone()
                if count:
                    found.append(f"{count} {what}")
            found += _check_live(connection)
            found += check_groups(connection)
            found += check_consumers(connection)
            found += _check_types(connection)
            found += _check_inputs(connection)
            found += _check_records(connection)
            found += _check_labels(connection)
    return found


def _check_types(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield which columns hold values of another type than theirs: SQLite keeps them as they come."""
    for table in TABLES:
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall():
            query = f"SELECT count(*) FROM {table} WHERE typeof({column}) <> ?"
            (count,) = connection.execute(query, [kind.lower()]).fetchone()
            if count:
                yield f"{table}.{column} is not of type {kind} in {_rows(count)}"


def _check_inputs(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield which rollouts have an input that is not a JSON value."""
    more = 0
    for rollout_id, data in connection.execute(_INPUTS):
        defect = input_defect(data)
        if defect:
            more += 1
            if more <= NAMED:
                yield f"the input of rollout {rollout_id!r} {defect}"
    if more > NAMED:
        yield f"the inputs of {more - NAMED} more rollouts are not JSON values"


def input_defect(data: object) -> str:
    """Return what is wrong with the input of a rollout, "" for a JSON value."""
    if type(data) is not bytes:
        return "is not a blob"
    if not data:
        return "is empty"
    try:
        check_json("input_json", data)
    except FieldInvalid:
        return "is not JSON"
    return ""


def lenient_text(data: bytes) -> str:
    """Return a TEXT that may not be UTF-8: that is a defect of its row, and must not hide the others."""
    return data.decode(errors="backslashreplace")


def _rows(count: int) -> str:
    return f"{count} row{'' if count == 1 else 's'}"


def _check_live(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield how many rows the next start would load needlessly, or miss."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < datafile.LIVE_VERSION:
        return
    for table, live, statuses in (("rollouts", 0, FINISHED), ("attempts", 1, LIVE_ATTEMPT)):
        query = (
            f"SELECT count(*) FROM {table}"
            f" WHERE (live = {live}) <> (status IN ({marks(len(statuses))}))"
        )
        (count,) = connection.execute(query, statuses).fetchone()
        if count:
            yield f"{count} {table} whose live column disagrees with their status"


def _check_counters(connection: sqlite3.Connection) -> Iterator[str]:
    rows = connection.execute("SELECT value FROM meta WHERE name = 'counters'").fetchall()
    try:
        counters = dict(json.loads(rows[0][0]))
        kept = {
            name: {key: count for key, count in counters.get(name, {}).items() if count}
            for name in _COUNTED
        }
        highest = {name: int(counters.get(name, 0)) for name in _HIGHEST}
    except (ValueError, TypeError, AttributeError, IndexError):
        yield "the counters cannot be read"
        return
    for name, query in _COUNTED.items():
        counted = {str(key): count for key, count in connection.execute(query)}
        if counted != kept[name]:
            yield f"{name} by status: {counted} in rows, {kept[name]} in counters"
    for what, query in _HIGHEST.items():
        (there,) = connection.execute(query).fetchone()
        if (there or 0) > highest[what]:
            yield f"{what}: {there} in rows, {highest[what]} in counters"


def _check_records(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield which records cannot be parsed, or disagree with the columns beside them."""
    for what, (query, said) in _RECORDS.items():
        wrong = 0
        for row in connection.execute(query):
            try:
                wrong += said(row[-1]) != row[:-1]
            except UNREADABLE:
                wrong += 1
        if wrong:
            yield f"{what}: the record disagrees with its columns in {_rows(wrong)}"
    for encoding, rollout_id, attempt, data, *columns in connection.execute(_SPANS):
        try:
            attempt_id = Attempt.FromString(attempt).attempt_id
            plain = zlib.decompress(data) if encoding == ZLIB else data
            batch = IngestSpansRequest.FromString(plain).batch
        except UNREADABLE:
            batch, attempt_id = SpanBatch(), ""
        if (batch.rollout_id, batch.attempt_id) != (rollout_id, attempt_id) or columns != (
            batch_columns(batch, columns[0])
        ):
            yield "a batch of spans that disagrees with the columns beside it"


def _check_labels(connection: sqlite3.Connection) -> Iterator[str]:
    """Yield how many rollouts a filter by queue or label would find wrongly, or miss."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version < datafile.LABELS_VERSION:
        return
    wrong = sum(1 for _ in wrong_labels(connection))
    if wrong:
        yield f"the labels of {wrong} rollouts disagree with their records"
    wrong = 0
    for queue, record in connection.execute("SELECT queue, record FROM rollouts"):
        with suppress(*UNREADABLE):
            wrong += Rollout.FromString(record).queue != queue
    if wrong:
        yield f"the queue of {wrong} rollouts disagrees with their records"
    query = "SELECT count(*) FROM labels WHERE rollout_key NOT IN (SELECT key FROM rollouts)"
    (count,) = connection.execute(query).fetchone()
    if count:
        yield f"{count} labels without a rollout"


def wrong_labels(connection: sqlite3.Connection) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the keys of rollouts whose rows of labels disagree with their records, and what these contain."""
    rows = connection.execute(
        "SELECT r.key, r.record, l.name, l.value FROM rollouts r"
        " LEFT JOIN labels l ON l.rollout_key = r.key ORDER BY r.key"
    )
    for (key, record), labels in groupby(rows, itemgetter(0, 1)):
        stored = {name: value for *_, name, value in labels if name is not None}
        try:
            right = dict(Rollout.FromString(record).labels)
        except UNREADABLE:
            continue
        if right != stored:
            yield key, right


_INPUTS = (
    "SELECT r.rollout_id, i.input_json FROM inputs i JOIN rollouts r ON r.key = i.rollout_key"
    " ORDER BY r.key"
)
_SPANS = (
    "SELECT s.encoding, r.rollout_id, a.record, s.data, s.first_sequence_id, s.last_sequence_id,"
    " s.contiguous, s.span_count, s.span_ids FROM spans s"
    " JOIN rollouts r ON r.key = s.rollout_key JOIN attempts a ON a.key = s.attempt_key"
)


def batch_columns(batch: SpanBatch, first: int) -> list[Any]:
    """Return the correct columns of a batch; without sequence ids of its own, it counts up from `first`."""
    count = len(batch.spans)
    numbers = batch.sequence_ids or range(first, first + count) or [0]
    ids = b"".join(span.span_id for span in batch.spans)
    return [min(numbers), max(numbers), not batch.sequence_ids, count, ids]


def _said_by_rollout(record: bytes) -> tuple[Any, ...]:
    r = Rollout.FromString(record)
    return (
        *(r.rollout_id, r.status, r.mode, r.priority, r.group_id, r.resources_id),
        *(nanoseconds(r.start_time), nanoseconds(r.end_time)),
        *(r.attempt_count, r.latest_attempt_id, r.completion_number),
    )


def _said_by_attempt(record: bytes) -> tuple[Any, ...]:
    a = Attempt.FromString(record)
    return (a.rollout_id, a.status, a.attempt_id)


def _counted_by_attempt(record: bytes) -> tuple[Any, ...]:
    a = Attempt.FromString(record)
    return (a.status, a.span_count)


def _said_by_resources(record: bytes) -> tuple[Any, ...]:
    r = Resources.FromString(record)
    return (r.resources_id, r.version)


#: A query of columns with the record last, and what the columns must be by the record.
_RECORDS: dict[str, tuple[str, Callable[[bytes], tuple[Any, ...]]]] = {
    "rollouts": (
        (
            "SELECT rollout_id, status, mode, priority, group_id, resources_id, start_time, end_time,"
            " attempt_count, latest_attempt_id, completion_number, record FROM rollouts"
        ),
        _said_by_rollout,
    ),
    "latest attempts": (
        (
            "SELECT r.rollout_id, a.status, r.latest_attempt_id, a.record FROM rollouts r JOIN attempts a"
            " ON a.rollout_key = r.key AND a.key ="
            " (SELECT max(key) FROM attempts WHERE rollout_key = r.key)"
        ),
        _said_by_attempt,
    ),
    "attempts": (
        (
            "SELECT status, coalesce((SELECT sum(span_count) FROM spans s WHERE s.attempt_key = a.key"
            " AND s.rollout_key = a.rollout_key), 0), record FROM attempts a"
        ),
        _counted_by_attempt,
    ),
    "resources": ("SELECT resources_id, version, record FROM resources", _said_by_resources),
    "workers": (
        "SELECT worker_id, record FROM workers",
        lambda record: (Worker.FromString(record).worker_id,),
    ),
}
#: Removed rollouts whose spans the server deletes a little at a time.
_LEAVING = (
    "CREATE TEMP VIEW leaving AS SELECT e.value AS key"
    " FROM meta m, json_each(m.value) e WHERE m.name = 'leaving'"
)
_COUNTED = {
    "rollouts": "SELECT status, count(*) FROM rollouts GROUP BY status",
    "attempts": "SELECT status, count(*) FROM attempts GROUP BY status",
}
_HIGHEST = {
    "rollout_key": "SELECT max(key) FROM rollouts",
    "attempt_key": "SELECT max(key) FROM attempts",
    "span_key": "SELECT max(key) FROM spans",
    "completion_number": "SELECT max(completion_number) FROM rollouts",
    "spans": "SELECT sum(span_count) FROM spans WHERE rollout_key NOT IN (SELECT key FROM leaving)",
}
_NONE = {
    "attempts without a rollout": "SELECT count(*) FROM attempts a LEFT JOIN rollouts r"
    " ON r.key = a.rollout_key WHERE r.key IS NULL",
    "batches of spans without a rollout": "SELECT count(*) FROM spans s LEFT JOIN rollouts r"
    " ON r.key = s.rollout_key WHERE r.key IS NULL AND s.rollout_key NOT IN (SELECT key FROM leaving)",
    "inputs without a rollout": "SELECT count(*) FROM inputs i LEFT JOIN rollouts r"
    " ON r.key = i.rollout_key WHERE r.key IS NULL",
    "attempts whose spans have higher numbers": "SELECT count(*) FROM attempts a WHERE last_sequence_id <"
    " (SELECT max(last_sequence_id) FROM spans s WHERE s.attempt_key = a.key"
    " AND s.rollout_key = a.rollout_key)",
    "rollouts without an input": "SELECT count(*) FROM rollouts r LEFT JOIN inputs i"
    " ON i.rollout_key = r.key WHERE i.rollout_key IS NULL",
}
