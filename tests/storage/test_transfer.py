"""A namespace that is copied between a data file and a database answers as before, and goes on with the same numbers."""

from __future__ import annotations

import asyncio
import gzip
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.client import (
    LLM,
    AsyncLightningStore,
    FailedPreconditionError,
    GroupSpec,
    RolloutConfig,
)
from lightningstore.client.embedded import store_over
from lightningstore.service.operations.store import open_store
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.rules.limits import Limits, Retention
from lightningstore.service.storage.base import Changes, Storage
from lightningstore.service.storage.postgres import transfer
from lightningstore.service.storage.postgres.catalog import TABLES as ROW_TABLES
from lightningstore.service.storage.postgres.catalog import PostgresCatalog
from lightningstore.service.storage.postgres.commits import COLUMNS as DATABASE_COLUMNS
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.postgres.transfer import to_database, to_file
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite import transfer as files
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog, folder_of
from lightningstore.service.storage.sqlite.commits import COLUMNS as FILE_COLUMNS
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.sqlite.transfer import place_of

from tests.clock import ManualClock
from tests.contract.helpers import batch
from tests.postgres import PostgresServer, make_schema

pytestmark = pytest.mark.asyncio

RELEASED = sorted((Path(__file__).parent / "released").glob("schema-*.db.gz"))
RETRY = RolloutConfig(max_attempts=3, retry_condition=["failed"])


@pytest_asyncio.fixture
async def url(postgres: PostgresServer) -> str:
    """A database without tables."""
    made = f"{postgres.url}?search_path=s{uuid.uuid4().hex[:16]}"
    await make_schema(made)
    return made


def silent(_: object) -> None:
    """Ignore progress."""


@asynccontextmanager
async def served(storage: Storage, clock: ManualClock) -> AsyncIterator[AsyncLightningStore]:
    """Provide a client of an open store."""
    service = await open_store(storage, clock, Limits(), Retention(None, None))
    store = store_over(service)
    try:
        yield store
    finally:
        await store.close()
        await service.close()


async def fill(store: AsyncLightningStore) -> None:
    """Store every kind of record."""
    await store.add_resources({"llm": LLM("http://h/v1", "m1", "sk")}, resources_id="rs")
    await store.update_resources("rs", {"llm": LLM("http://h/v1", "m2", "sk")})
    await store.enqueue_rollouts(
        [{"input": {"ü": n}, "rollout_id": f"ro-{n}", "config": RETRY} for n in range(6)],
        request_id="enqueued",
    )
    await store.enqueue_rollout("x" * 100_000, rollout_id="large", group_id="g", mode="train")
    await store.enqueue_rollout(
        1, rollout_id="ro-gpu", queue="gpu", labels={"run": "7", "a/b": "ü"}
    )
    await store.enqueue_rollouts([], groups=[GroupSpec("g", 2, 600), GroupSpec("ü", 1)])
    await store.update_rollout("ro-5", group_id="ü")
    claimed = await store.dequeue_rollouts(4, worker_id="w1", request_id="claimed")
    for rollout in claimed:
        sent = batch(rollout.rollout_id, rollout.attempt.attempt_id, *"abc" * 200)
        await store.add_spans(sent)
    await store.add_spans(batch("ro-0", claimed[0].attempt.attempt_id, "late", numbers=(9000,)))
    await store.update_attempt("ro-0", "latest", status="succeeded", request_id="ended")
    await store.update_attempt("ro-1", "latest", status="failed")
    await store.update_attempt("ro-2", "latest", status="succeeded")
    await store.cancel_rollouts(["ro-5"])
    await store.heartbeat("w2", stats={"gpu": 0.5})


async def answers(store: AsyncLightningStore) -> dict[str, Any]:
    """Return what a store answers."""
    found = {rollout.rollout_id: rollout async for rollout in store.iter_rollouts()}
    return {
        "rollouts": found,
        "attempts": {i: list(await store.list_attempts(i)) for i in found},
        "spans": {i: [span async for span in store.query_spans(i)] for i in found},
        "resources": list(await store.list_resources()),
        "latest": await store.get_resources(),
        "workers": list(await store.list_workers()),
        "group": list(await store.list_rollouts(group_ids=["g"])),
        "queue": list(await store.list_rollouts(queues=["gpu"])),
        "labels": list(await store.list_rollouts(labels={"run": "7"})),
        "groups": list(await store.list_groups()),
    }


async def facts(storage: Storage) -> tuple[Any, ...]:
    """Return what an engine loads besides the records."""
    found = await storage.open()
    await storage.close()
    counters = found.counters
    counters.clock = []  # the last commit of a server that stops notes the time
    requests = sorted((r.method, r.request_id, r.digest, r.answer) for r in found.requests)
    return found.store_id, counters, found.settings, requests, len(found.live), found.resources


async def filled(storage: Storage, clock: ManualClock) -> None:
    """Fill a store, remove a rollout of it whose spans stay behind, and give it settings."""
    async with served(storage, clock) as store:
        await fill(store)
    await storage.open()
    (gone,) = await storage.load(["ro-2"])
    found = await storage.open()
    counters = found.counters
    counters.rollouts[gone.row.rollout.status] -= 1
    counters.attempts[gone.attempts[0].attempt.status] -= 1
    counters.spans -= 600
    await storage.commit(Changes(removed=[gone.row.key], settings=b"", counters=counters))
    await storage.close()


@pytest.mark.parametrize("compress", [False, True])
async def test_namespace_goes_to_a_database_and_back_as_it_was(
    url: str, tmp_path: Path, compress: bool
) -> None:
    clock = ManualClock()
    first, second = tmp_path / "first.db", tmp_path / "second.db"
    await filled(SqliteStorage(first, compress=compress), clock)
    before = await facts(SqliteStorage(first))
    async with served(SqliteStorage(first), clock) as store:
        shown = await answers(store)
        page = await store.list_rollouts(page_size=2)
        rest = await store.list_rollouts(page_size=9, page_token=page.next_page_token)
    copied = await to_database(first, Database(url), "run-1", silent)
    assert (copied.rollouts, copied.attempts, copied.spans) == (7, 3, 1801)
    assert copied.done == copied.total
    assert await facts(PostgresStorage(Database(url), "run-1")) == before
    await to_file(Database(url), "run-1", place_of(second, "default", folder=False), silent)
    assert tools.check(second) == []
    assert await facts(SqliteStorage(second)) == before
    for storage in (PostgresStorage(Database(url), "run-1"), SqliteStorage(second)):
        async with served(storage, clock) as store:
            assert await answers(store) == shown
            again = await store.list_rollouts(page_size=9, page_token=page.next_page_token)
            assert list(again) == list(rest)
            await goes_on(store, before[0])
    async with served(SqliteStorage(first), clock) as store:
        assert await answers(store) == shown


async def goes_on(store: AsyncLightningStore, store_id: str) -> None:
    """Show that request ids, watches and numbers continue."""
    repeated = await store.dequeue_rollouts(4, worker_id="w1", request_id="claimed")
    assert [rollout.rollout_id for rollout in repeated] == ["ro-0", "ro-1", "ro-2", "ro-3"]
    async with store.watch_rollouts(3, store_id=store_id) as watch:
        await watch.registered()
        await store.update_attempt("ro-3", "latest", status="succeeded")
        finished = await asyncio.wait_for(watch.__anext__(), 20)
    assert (finished.rollout_id, finished.completion_number) == ("ro-3", 4)
    claimed = await store.dequeue_rollouts(9)
    assert [rollout.rollout_id for rollout in claimed] == ["ro-4", "large", "ro-1"]
    groups = await store.list_groups()
    assert [(g.group_id, g.completion_number) for g in groups] == [("g", 0), ("ü", 1)]
    with pytest.raises(FailedPreconditionError):
        await store.update_rollout("ro-1", group_id="ü")
    await store.update_rollout("ro-1", group_id="g")
    await store.cancel_rollouts(["large", "ro-1"])
    assert (await store.get_group("g")).completion_number == 2


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.name)
async def test_file_of_an_earlier_version_is_copied_and_stays_as_it_is(
    released: Path, url: str, tmp_path: Path
) -> None:
    file = tmp_path / "old.db"
    file.write_bytes(gzip.decompress(released.read_bytes()))
    before = sha256(file.read_bytes()).digest()
    await to_database(file, Database(url), "old", silent)
    assert sha256(file.read_bytes()).digest() == before
    assert [path.name for path in tmp_path.iterdir()] == ["old.db"]
    clock = ManualClock()
    async with served(PostgresStorage(Database(url), "old"), clock) as store:
        shown = await answers(store)
    async with served(SqliteStorage(file), clock) as store:
        assert await answers(store) == shown


async def test_rows_are_copied_a_few_at_a_time(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (files, transfer):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 3)
        monkeypatch.setattr(module, "BYTES_AT_ONCE", 50_000)
    file, clock, sizes = tmp_path / "f.db", ManualClock(), [0]
    await filled(SqliteStorage(file), clock)
    before = await facts(SqliteStorage(file))
    await to_database(file, Database(url), "x", lambda now: sizes.append(now.size))
    sizes.append(0)
    back = place_of(tmp_path / "back.db", "default", folder=False)
    await to_file(Database(url), "x", back, lambda now: sizes.append(now.size))
    steps = [later - earlier for earlier, later in pairwise(sizes)]
    assert max(steps) < 2 * 100_000  # what one row takes, the large input, and a few others
    assert len(steps) > 20
    assert await facts(SqliteStorage(back.path)) == before


async def test_compressed_spans_are_unpacked_a_few_at_a_time(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    async with served(SqliteStorage(file), clock) as store:
        begun = await store.start_rollout(1)
        for _ in range(20):
            same = batch(begun.rollout_id, begun.attempt.attempt_id, "same " * 60_000)
            await store.add_spans(same)
    await to_database(file, Database(url), "x", silent)
    put, sizes = files.FileTarget.put, []

    def noted(self: files.FileTarget, table: str, rows: Any) -> None:
        sizes.append(sum(map(files.bytes_of, rows)))
        put(self, table, rows)

    monkeypatch.setattr(transfer, "BYTES_AT_ONCE", 500_000)
    monkeypatch.setattr(files.FileTarget, "put", noted)
    place = place_of(tmp_path / "g.db", "default", folder=False)
    copied = await to_file(Database(url), "x", place, silent)
    assert copied.size < 500_000
    assert sum(sizes) > 5_000_000
    assert max(sizes) < 2 * 500_000
    assert tools.check(place.path) == []


async def rows_of(url: str) -> dict[str, int]:
    """Return how many rows there are of namespaces."""
    connection = await asyncpg.connect(url)
    try:
        tables = (*ROW_TABLES, "ls_namespaces")
        return {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for name in tables}
    finally:
        await connection.close()


class Stopped(Exception):
    """What ends a copy."""


def stopping(after: int) -> Callable[[object], None]:
    """Return what ends a copy after some steps."""
    steps = 0

    def show(_: object) -> None:
        nonlocal steps
        steps += 1
        if steps > after:
            raise Stopped

    return show


async def test_copy_that_ends_anywhere_leaves_nothing_behind(url: str, tmp_path: Path) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    before = sha256(file.read_bytes()).digest()
    for after in range(6):
        with pytest.raises(Stopped):
            await to_database(file, Database(url), "x", stopping(after))
        assert set((await rows_of(url)).values()) == {0}
    assert sha256(file.read_bytes()).digest() == before
    await to_database(file, Database(url), "x", silent)
    there = await rows_of(url)
    folder = tmp_path / "data"
    for after in range(6):
        with pytest.raises(Stopped):
            await to_file(Database(url), "x", place_of(folder, "y", folder=True), stopping(after))
        assert list(folder.iterdir()) == []
    assert await rows_of(url) == there
    await to_file(Database(url), "x", place_of(folder, "y", folder=True), silent)
    assert [path.name for path in folder.iterdir()] == ["y.db"]


async def test_draft_that_a_crash_left_is_removed_by_the_next_start(
    url: str, tmp_path: Path
) -> None:
    path = tmp_path / "f.db"
    await filled(SqliteStorage(path), ManualClock())
    await to_database(path, Database(url), "x", silent)
    for name in ("default", "x"):
        target = files.FileTarget(place_of(tmp_path / "new.db", name, folder=False))
        target._connection.close()  # as the end of a process does
    catalog = SqliteCatalog(folder_of(tmp_path / "new.db"))
    assert [item.name for item in await catalog.survey()] == []
    await (storage := SqliteStorage(tmp_path / "new.db")).open()
    await storage.close()
    left = sorted(item.name for item in tmp_path.rglob("*") if "new" in item.name)
    assert left == ["new.db", "new.db.d"]


async def test_file_that_is_in_use_missing_or_damaged_is_not_copied(
    url: str, tmp_path: Path
) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    async with served(SqliteStorage(file), clock):
        with pytest.raises(StorageUnusable, match="is in use by another server"):
            await to_database(file, Database(url), "x", silent)
    with pytest.raises(StorageUnusable, match="No such file"):
        await to_database(tmp_path / "none.db", Database(url), "x", silent)
    assert not (tmp_path / "none.db").exists()
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE rollouts SET status = 4 WHERE rollout_id = 'ro-4'")
    with pytest.raises(StorageUnusable, match=r"is damaged: .*check --repair"):
        await to_database(file, Database(url), "x", silent)


async def test_namespace_that_a_server_owns_is_not_copied(url: str, tmp_path: Path) -> None:
    clock = ManualClock()
    place = place_of(tmp_path / "f.db", "default", folder=False)
    with pytest.raises(StorageUnusable, match="has no namespaces"):
        await to_file(Database(url), "x", place, silent)
    async with served(PostgresStorage(Database(url, address="h:1"), "x"), clock) as store:
        await store.enqueue_rollout(1)
        with pytest.raises(StorageUnusable, match="owned by the server at h:1"):
            await to_file(Database(url), "x", place, silent)
    with pytest.raises(StorageUnusable, match="there is no namespace 'y'"):
        await to_file(Database(url), "y", place, silent)
    assert list(tmp_path.iterdir()) == []


async def test_namespace_with_content_is_not_overwritten_and_an_empty_one_is_replaced(
    url: str, tmp_path: Path
) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    before = await facts(SqliteStorage(file))
    async with served(PostgresStorage(Database(url, address="h:1"), "x"), clock):
        with pytest.raises(StorageUnusable, match="owned by the server at h:1"):
            await to_database(file, Database(url), "x", silent)
    await to_database(file, Database(url), "x", silent)
    assert await facts(PostgresStorage(Database(url), "x")) == before
    with pytest.raises(StorageUnusable, match="is not empty"):
        await to_database(file, Database(url), "x", silent)
    async with served(SqliteStorage(tmp_path / "g.db"), clock):
        with pytest.raises(StorageUnusable, match="in use"):
            await to_file(
                Database(url), "x", place_of(tmp_path / "g.db", "default", folder=False), silent
            )
    place = place_of(tmp_path / "g.db", "default", folder=False)
    await to_file(Database(url), "x", place, silent)
    assert await facts(SqliteStorage(place.path)) == before
    with pytest.raises(StorageUnusable, match="is not empty"):
        await to_file(Database(url), "x", place, silent)
    assert await facts(SqliteStorage(place.path)) == before


async def test_target_that_a_server_makes_meanwhile_is_kept(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    put = transfer._put_namespace

    async def late(*arguments: Any) -> None:
        storage = PostgresStorage(Database(url), "x")
        await storage.open()
        await storage.close()
        await put(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(transfer, "_put_namespace", late)
        for _ in range(2):  # the namespace is made, and then an empty one is opened
            with pytest.raises(StorageUnusable, match="meanwhile"):
                await to_database(file, Database(url), "x", silent)
    there = await rows_of(url)
    assert (there["ls_rollouts"], there["ls_namespaces"]) == (0, 1)
    await to_database(file, Database(url), "y", silent)
    new = tmp_path / "new.db"

    def make(_: object) -> None:
        if not new.exists():
            new.write_bytes(file.read_bytes())

    with pytest.raises(StorageUnusable, match="is not empty"):
        await to_file(Database(url), "y", place_of(new, "default", folder=False), make)
    assert new.read_bytes() == file.read_bytes()


async def test_source_that_a_server_takes_meanwhile_is_not_copied(url: str, tmp_path: Path) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    await to_database(file, Database(url), "x", silent)
    connection = await asyncpg.connect(url)
    taken: list[asyncio.Task[str]] = []

    def take(_: object) -> None:
        if not taken:
            text = "UPDATE ls_namespaces SET epoch = epoch + 1"
            taken.append(asyncio.create_task(connection.execute(text)))

    with pytest.raises(StorageUnusable, match="has taken namespace 'x' meanwhile"):
        await to_file(
            Database(url), "x", place_of(tmp_path / "g.db", "default", folder=False), take
        )
    assert [path.name for path in tmp_path.iterdir()] == ["f.db"]
    await connection.close()


async def test_copy_under_the_name_of_a_deleted_namespace_keeps_its_store_id(
    url: str, tmp_path: Path
) -> None:
    """A running server remembers how far it had written to the one that it deleted."""
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    before = await facts(SqliteStorage(file))
    database = Database(url)
    default = PostgresStorage(database, "default")
    await default.open()
    async with served(PostgresStorage(database, "x"), clock) as store:
        await store.enqueue_rollout(1)
    await PostgresCatalog(database).delete("x")
    await to_database(file, Database(url), "x", silent)
    assert (await facts(PostgresStorage(database, "x")))[0] == before[0]
    await default.close()


async def test_commit_whose_answer_was_lost_is_a_success(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, clock = tmp_path / "f.db", ManualClock()
    await filled(SqliteStorage(file), clock)
    before = await facts(SqliteStorage(file))
    commit = asyncpg.transaction.Transaction.__aexit__

    async def lost(self: Any, *arguments: Any) -> None:
        await commit(self, *arguments)
        if arguments[0] is None and self._connection.get_server_pid() == pids[-1]:
            raise ConnectionResetError("lost")

    pids: list[int] = []
    put = transfer._put_namespace

    async def noted(connection: Any, *arguments: Any) -> None:
        pids.append(connection.get_server_pid())
        await put(connection, *arguments)

    monkeypatch.setattr(transfer, "_put_namespace", noted)
    with monkeypatch.context() as patch:
        patch.setattr(asyncpg.transaction.Transaction, "__aexit__", lost)
        pids.append(0)
        await to_database(file, Database(url), "x", silent)
    assert await facts(PostgresStorage(Database(url), "x")) == before


async def test_columns_of_both_back_ends_are_in_the_same_order() -> None:
    assert {n: tuple(columns) for n, columns in DATABASE_COLUMNS.items()} == FILE_COLUMNS
    assert {f"put_{table}" for table in files.TABLES} == FILE_COLUMNS.keys()
