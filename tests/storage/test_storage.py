"""What every back end has to do, whatever the engine makes of it."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.rows import (
    AttemptRow,
    RequestRow,
    ResourcesQuery,
    ResourcesRow,
    ResourcesVersion,
    RolloutQuery,
    RolloutRow,
    SpanRow,
)
from lightningstore.service.storage.base import Changes, Counters, Storage
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import Rollout
from lightningstore.v1.worker_pb2 import Worker

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture(params=["memory", "sqlite", "sqlite-compressed"])
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Storage]:
    if request.param == "memory":
        made: Storage = MemoryStorage()
    else:
        made = SqliteStorage(tmp_path / "s.db", compress=request.param.endswith("compressed"))
    await made.open()
    yield made
    await made.close()


def rollout(key: int, **fields: object) -> RolloutRow:
    record = Rollout(rollout_id=f"r{key}", status=1, **fields)
    record.start_time.seconds = key
    return RolloutRow(key, record, key, 0)


def attempt(key: int, rollout_key: int, status: int = 1) -> AttemptRow:
    record = Attempt(rollout_id=f"r{rollout_key}", attempt_id=f"a{key}", status=status)
    return AttemptRow(key, rollout_key, record, 10 * key)


def spans(
    key: int, first: int, last: int, *, rollout_key: int = 1, attempt_key: int = 1
) -> SpanRow:
    ids = b"".join(n.to_bytes(8, "big") for n in range(first, last + 1))
    data = f"batch {key} ".encode() * 50
    count = last - first + 1
    return SpanRow(key, rollout_key, attempt_key, first, last, count, ids, data, True)


async def put(storage: Storage, *rows: RolloutRow | AttemptRow | SpanRow, **more: object) -> None:
    changes = Changes(counters=Counters(), **more)
    for row in rows:
        if isinstance(row, RolloutRow):
            changes.rollouts[row.key] = row
            changes.inputs.append((row.key, f"input {row.key}".encode()))
        elif isinstance(row, AttemptRow):
            changes.attempts[row.key] = row
        else:
            changes.spans.append(row)
    await storage.commit(changes)


async def found(storage: Storage, **query: object) -> list[str]:
    return [
        loaded.row.rollout.rollout_id
        async for loaded in storage.scan_rollouts(RolloutQuery(**query))
    ]


async def test_rollouts_are_loaded_with_input_and_all_attempts_in_order(storage: Storage) -> None:
    await put(storage, rollout(1), rollout(2), attempt(1, 2), attempt(2, 1), attempt(3, 2))
    loaded = {item.row.key: item for item in await storage.load(["r2", "nobody", "r1"])}
    assert sorted(loaded) == [1, 2]
    assert loaded[2].input_json == b"input 2"
    assert [row.key for row in loaded[2].attempts] == [1, 3]
    assert loaded[2].attempts[1].last_sequence_id == 30
    assert loaded[1].row == rollout(1)


async def test_later_values_replace_earlier_ones(storage: Storage) -> None:
    await put(storage, rollout(1), attempt(1, 1))
    changes = Changes(counters=Counters())
    changed = rollout(1, priority=3)._replace(position=0)
    changes.rollouts[1] = changed
    changes.attempts[1] = attempt(1, 1, status=3)
    await storage.commit(changes)
    (loaded,) = await storage.load(["r1"])
    assert loaded.row == changed
    assert loaded.attempts == [attempt(1, 1, status=3)]
    assert loaded.input_json == b"input 1"


async def test_scans_show_the_latest_attempt_alone(storage: Storage) -> None:
    await put(storage, rollout(1), rollout(2), attempt(1, 1), attempt(2, 1))
    loaded = [item async for item in storage.scan_rollouts(RolloutQuery())]
    assert [[row.key for row in item.attempts] for item in loaded] == [[2], []]


async def test_pages_go_on_from_a_place_in_any_order(storage: Storage) -> None:
    await put(storage, *(rollout(k, priority=k % 2) for k in range(1, 8)))
    assert await found(storage, limit=3) == ["r1", "r2", "r3"]
    assert await found(storage, after=(3, 3), limit=3) == ["r4", "r5", "r6"]
    assert await found(storage, order_by="priority", after=(0, 4)) == ["r6", "r1", "r3", "r5", "r7"]
    down = await found(storage, order_by="priority", descending=True, after=(1, 3))
    assert down == ["r1", "r6", "r4", "r2"]
    assert await found(storage, descending=True, skip=5) == ["r2", "r1"]
    assert await storage.count_rollouts(RolloutQuery(limit=1, skip=2)) == 7


async def test_completions_come_by_number_and_without_reopened_ones(storage: Storage) -> None:
    await put(
        storage, *(rollout(k, completion_number=9 - k) for k in range(5, 0, -1)), attempt(1, 5)
    )
    changes = Changes(counters=Counters())
    changes.rollouts[4] = rollout(4)
    await storage.commit(changes)
    loaded = await storage.completions(4, 3)
    assert [item.row.rollout.completion_number for item in loaded] == [6, 7, 8]
    (first,) = await storage.completions(0, 1)
    assert [row.key for row in first.attempts] == [1]


async def test_groups_know_their_members(storage: Storage) -> None:
    await put(storage, rollout(1, group_id="g"), rollout(2), rollout(3, group_id="g"))
    assert await storage.group_members("g") == ["r1", "r3"]
    assert await storage.group_members("none") == []
    changes = Changes(counters=Counters())
    changes.rollouts[1] = rollout(1, group_id="h")
    await storage.commit(changes)
    assert await storage.group_members("g") == ["r3"]


async def test_batches_come_by_sequence_id_up_to_a_key(storage: Storage) -> None:
    rows = [
        spans(1, 10, 12),
        spans(2, 1, 3),
        spans(3, 5, 5, attempt_key=2),
        spans(4, 2, 2),
        spans(5, 1, 1, rollout_key=2),
        spans(6, 1, 3),
    ]
    await put(storage, *rows)
    scanned = [row async for row in storage.scan_spans(1, None, 5)]
    assert [row.key for row in scanned] == [2, 4, 3, 1]
    assert [row.key async for row in storage.scan_spans(1, 1, 99)] == [2, 6, 4, 1]
    one = await storage.get_spans(1, 3)
    assert one is not None
    assert one.data == rows[2].data
    assert await storage.get_spans(1, 99) is None
    first = scanned[0]
    assert (first.first_sequence_id, first.last_sequence_id, first.span_count) == (1, 3, 3)
    assert await storage.span_ids(1, 2) == [(3, rows[2].span_ids)]


async def test_many_batches_are_all_scanned(storage: Storage) -> None:
    await put(storage, *(spans(k, k, k) for k in range(1, 301)))
    assert [row.key async for row in storage.scan_spans(1, None, 999)] == list(range(1, 301))


async def test_resources_keep_the_order_of_their_adding(storage: Storage) -> None:
    for updated, name in enumerate(["b", "a", "b"], 1):
        record = Resources(resources_id=name, version=updated)
        row = ResourcesRow({"b": 4, "a": 7}[name], updated, record)
        await storage.commit(Changes(resources={name: row}, counters=Counters()))
    listed = await storage.list_resources(ResourcesQuery())
    assert [(key, r.resources_id, r.version) for key, r in listed] == [(4, "b", 3), (7, "a", 2)]
    after = await storage.list_resources(ResourcesQuery(after=listed[0][0]))
    assert [r.resources_id for _, r in after] == ["a"]
    assert await storage.list_resources(ResourcesQuery(id_contains="%")) == []
    found = await storage.get_resources("b")
    assert found is not None
    assert found.version == 3
    assert await storage.get_resources("c") is None


async def test_evicted_spans_are_gone(tmp_path: Path) -> None:
    storage = MemoryStorage()
    await put(storage, spans(1, 1, 1), spans(2, 1, 1, rollout_key=2))
    await put(storage, evicted=[1])
    assert [row.key async for row in storage.scan_spans(1, None, 99)] == []
    assert [row.key async for row in storage.scan_spans(2, None, 99)] == [2]


class TestDisk:
    """What only a back end with a disk can be asked."""

    async def test_reopening_gives_back_what_is_live(self, tmp_path: Path) -> None:
        storage = SqliteStorage(tmp_path / "s.db")
        empty = await storage.open()
        assert (empty.live, empty.workers, empty.counters) == ([], [], Counters())
        done, orphan = rollout(2), rollout(3)
        done.rollout.status = orphan.rollout.status = 4
        counters = Counters(rollout_key=3, spans=5, rollouts={1: 1, 4: 2})
        changes = Changes(counters=counters, workers={"w": Worker(worker_id="w", status=3)})
        for row in (rollout(1), done, orphan):
            changes.rollouts[row.key] = row
            changes.inputs.append((row.key, b"1"))
        for tried in (attempt(1, 2, status=3), attempt(2, 3, status=2), attempt(3, 1, status=4)):
            changes.attempts[tried.key] = tried
        changes.requests.append(RequestRow("M", "id", 7, b"answer", 123))
        changes.resources["rs"] = ResourcesRow(3, 9, Resources(resources_id="rs", version=2))
        await storage.commit(changes)
        await storage.close()
        snapshot = await storage.open()
        await storage.close()
        assert sorted(item.row.key for item in snapshot.live) == [1, 3]
        assert snapshot.counters == counters
        assert snapshot.store_id == empty.store_id
        assert [w.worker_id for w in snapshot.workers] == ["w"]
        assert snapshot.requests == [RequestRow("M", "id", 7, b"answer", 123)]
        assert snapshot.resources == {"rs": ResourcesVersion(3, 2, 9)}

    async def test_commit_is_all_or_nothing(self, tmp_path: Path) -> None:
        storage = SqliteStorage(tmp_path / "s.db")
        await storage.open()
        await put(storage, spans(1, 1, 1))
        with pytest.raises(StorageFailed, match="UNIQUE"):
            await put(storage, rollout(1), attempt(1, 1), spans(1, 1, 1))
        await storage.close()
        await storage.open()
        assert await storage.load(["r1"]) == []
        await put(storage, rollout(1))
        assert len(await storage.load(["r1"])) == 1
        await storage.close()

    async def test_committed_rows_are_in_the_file_before_it_is_closed(self, tmp_path: Path) -> None:
        storage = SqliteStorage(tmp_path / "s.db")
        await storage.open()
        await put(storage, rollout(1))
        other = sqlite3.connect(f"file:{tmp_path}/s.db?mode=ro", uri=True)
        assert other.execute("SELECT rollout_id FROM rollouts").fetchall() == [("r1",)]
        other.close()
        await storage.close()

    async def test_old_request_ids_are_forgotten(self, tmp_path: Path) -> None:
        storage = SqliteStorage(tmp_path / "s.db")
        await storage.open()
        rows = [RequestRow("M", f"id{n}", 0, b"", n) for n in range(5)]
        await put(storage, requests=rows)
        await put(storage, forget_requests_before_ns=3)
        await storage.close()
        assert [row.time_ns for row in (await storage.open()).requests] == [3, 4]
        await storage.close()

    async def test_closed_storage_says_so(self, tmp_path: Path) -> None:
        storage = SqliteStorage(tmp_path / "s.db")
        await storage.open()
        await storage.close()
        await storage.close()
        with pytest.raises(StorageFailed, match="closed"):
            await put(storage, rollout(1))
        with pytest.raises(StorageFailed, match="closed"):
            await storage.load(["r1"])
        with pytest.raises(StorageFailed, match="closed"):
            await found(storage)


async def test_probe_leaves_nothing_behind(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    await storage.probe(1 << 20)
    await storage.close()
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        (size,) = connection.execute("SELECT sum(length(value)) FROM meta").fetchone()
        assert size < 10_000
        connection.execute("INSERT INTO meta (name, value) VALUES ('probe', zeroblob(1048576))")
        connection.commit()  # as a crash leaves it
    await storage.open()
    await storage.close()
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT sum(length(value)) FROM meta").fetchone() == (size,)


async def test_probe_finds_a_full_disk(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    assert storage._writer is not None
    (pages,) = storage._writer.execute("PRAGMA page_count").fetchone()
    storage._writer.execute(f"PRAGMA max_page_count = {pages + 2}")
    await storage.probe(100)
    with pytest.raises(StorageFailed, match="full"):
        await storage.probe(1 << 20)
    await storage.close()


async def test_open_storage_is_opened_again(storage: Storage) -> None:
    """That is how the engine recovers: what was committed is there, on a back end that keeps it."""
    await put(storage, rollout(1))
    snapshot = await storage.open()
    if storage.name == "sqlite":
        assert [loaded.row for loaded in snapshot.live] == [rollout(1)]
    await put(storage, rollout(2))
    assert "r2" in await found(storage)
