"""PostgreSQL that fails: statements, connections, the server itself. Commits are written once, or not at all."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import OwnershipLost, StorageFailed, StorageUnusable
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.postgres import commits, lease, link
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.testing.records import (
    attempt,
    batches,
    changes_of,
    found,
    loaded,
    put,
    rollout,
    spans,
)
from lightningstore.v1.worker_pb2 import Worker

from tests.faults.proxy import Proxy
from tests.postgres import PostgresServer, end_lease, namespace_of, running
from tests.storage.failing_connection import FailingDatabase, Fault

pytestmark = pytest.mark.asyncio

#: No lease ends while a test waits.
LEASE_SECONDS = 60.0


def storage_of(url: str, place: Path) -> PostgresStorage:
    return PostgresStorage(Database(url, lease_seconds=LEASE_SECONDS), namespace_of(place))


@pytest_asyncio.fixture
async def storage(postgres: PostgresServer, tmp_path: Path) -> AsyncIterator[PostgresStorage]:
    """An open storage."""
    made = storage_of(postgres.url, tmp_path)
    await made.open()
    yield made
    await made.close()


@pytest_asyncio.fixture
async def admin(postgres: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test itself."""
    connection = await asyncpg.connect(postgres.url)
    yield connection
    await connection.close()


async def commit_one(storage: PostgresStorage, key: int) -> None:
    await put(storage, rollout(key), attempt(key, key), spans(key, 1, 1, rollout_key=key))


async def assert_holds(storage: PostgresStorage, keys: set[int]) -> None:
    """Check that exactly these rollouts are stored, each whole."""
    assert {int(name[1:]) for name in await found(storage, limit=10_000)} == keys
    for item in (await loaded(storage, *(f"r{key}" for key in keys))).values():
        assert [row.key for row in item.attempts] == [item.row.key]
    for key in keys:
        assert await batches(storage, key) == [key]


# Statements


@pytest.mark.timeout(300)  # it opens dozens of stores
@pytest.mark.parametrize("takes_effect", [False, True])
async def test_no_statement_whose_connection_breaks_harms_anything(
    takes_effect: bool, postgres: PostgresServer, tmp_path: Path
) -> None:
    """The first statement fails, in the next run the second, and so on, until the run has no more of them."""
    at = 1
    while True:
        fault = Fault(at, takes_effect=takes_effect)
        database = FailingDatabase(postgres.url, fault, lease_seconds=LEASE_SECONDS)
        storage = PostgresStorage(database, namespace_of(tmp_path / str(at)))
        try:
            await storage.open()
        except StorageUnusable:
            # The very first connection is not replaced: its failure is reported.
            await storage.open()
        for key in (1, 2, 3):
            await commit_one(storage, key)
        await assert_holds(storage, {1, 2, 3})
        await storage.probe(10)
        snapshot = await storage.open()
        assert [item.row.key for item in snapshot.live] == [1, 2, 3]
        await storage.close()
        if fault.statements < at:
            break
        at += 1
    assert at > 20


async def test_statement_that_the_database_refuses_fails_its_call_alone(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    fault = Fault(error=asyncpg.DiskFullError)
    database = FailingDatabase(postgres.url, fault, lease_seconds=LEASE_SECONDS)
    storage = PostgresStorage(database, namespace_of(tmp_path))
    await storage.open()
    await commit_one(storage, 1)
    for call in (
        lambda: commit_one(storage, 2),
        lambda: storage.probe(1),
        lambda: storage.load(["r1"]),
        lambda: found(storage),
    ):
        fault.at = fault.statements + 1
        with pytest.raises(StorageFailed, match="injected"):
            await call()
    await storage.open()
    await commit_one(storage, 2)
    await assert_holds(storage, {1, 2})
    await storage.close()


# Connections


@pytest.fixture
def proxy(postgres: PostgresServer) -> Iterator[Proxy]:
    with Proxy(postgres.port) as made:
        yield made


def through(proxy: Proxy, postgres: PostgresServer) -> str:
    return postgres.url.replace(str(postgres.port), str(proxy.port))


async def test_commit_whose_answer_is_lost_is_written_once(
    proxy: Proxy, postgres: PostgresServer, tmp_path: Path
) -> None:
    storage = storage_of(through(proxy, postgres), tmp_path)
    await storage.open()
    await commit_one(storage, 1)  # its statement is prepared from now on
    lost = asyncio.Event()
    loop = asyncio.get_running_loop()
    proxy.swallowed = lambda: loop.call_soon_threadsafe(lost.set)
    for key in range(2, 8):
        lost.clear()
        proxy.swallow = True
        commit = asyncio.create_task(commit_one(storage, key))
        await lost.wait()
        proxy.swallow = False
        await asyncio.to_thread(proxy.cut)
        await commit
    await assert_holds(storage, set(range(1, 8)))
    assert storage._session is not None
    assert storage._session.seq == 7
    await storage.close()


@pytest.mark.timeout(300)  # it waits for connections that do not answer
async def test_connection_that_is_half_open_is_given_up(
    proxy: Proxy, postgres: PostgresServer, tmp_path: Path
) -> None:
    storage = storage_of(through(proxy, postgres), tmp_path)
    for one in storage.database._writers.links:
        one._try_seconds = 0.3
    await storage.open()
    await commit_one(storage, 1)
    await asyncio.to_thread(proxy.abandon)
    await commit_one(storage, 2)
    await assert_holds(storage, {1, 2})
    await storage.close()


async def test_transaction_on_a_half_open_connection_is_given_up(
    proxy: Proxy, postgres: PostgresServer
) -> None:
    database = Database(through(proxy, postgres))
    used = link.Link(database.connect, 0.3)

    async def work(connection: asyncpg.Connection, tries: int) -> int:
        async with connection.transaction():
            if tries == 0:
                await asyncio.to_thread(proxy.abandon)
            return await connection.fetchval("SELECT 1")

    async with asyncio.timeout(30):
        assert await used.run(work, link.in_seconds(30)) == 1
    endless = asyncio.create_task(
        used.run(lambda c, _: c.execute("SELECT pg_sleep(60)"), link.in_seconds(5))
    )
    await asyncio.sleep(0.1)
    await asyncio.to_thread(proxy.abandon)
    async with asyncio.timeout(30):
        await used.close()
    with pytest.raises(StorageFailed):
        await endless


async def test_calls_that_queued_behind_one_without_an_answer_fail_with_it(
    proxy: Proxy, postgres: PostgresServer
) -> None:
    database = Database(through(proxy, postgres))
    used = link.Link(database.connect, 0.3)
    tries = []

    async def work(connection: asyncpg.Connection, _: int) -> None:
        tries.append(1)
        await connection.execute("SELECT pg_sleep(60)")

    await used.run(lambda c, _: c.execute("SELECT 1"), link.in_seconds(30))  # it is connected
    calls = [used.run(work, link.in_seconds(0.2)) for _ in range(20)]
    async with asyncio.timeout(30):
        ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} == {StorageFailed}
    assert len(tries) == 1
    await used.close()


async def test_terminated_back_ends_lose_nothing(
    storage: PostgresStorage, admin: asyncpg.Connection
) -> None:
    terminate = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE pid <> pg_backend_pid() AND application_name = 'lightningstore'"
    )
    terminated = 0
    for key in range(1, 41):
        commit = asyncio.create_task(commit_one(storage, key))
        for _ in range(key % 8):
            await asyncio.sleep(0)
        terminated += await admin.fetchval(terminate)
        await commit
        assert len(await storage.load([f"r{key}"])) == 1
    assert terminated >= 40
    await assert_holds(storage, set(range(1, 41)))


async def test_cancelled_callers_leave_the_connections_usable(storage: PostgresStorage) -> None:
    await commit_one(storage, 1)
    pids = set()
    for turns in range(12):
        reads = [asyncio.create_task(storage.load(["r1"])) for _ in range(3)]
        reads += [asyncio.create_task(storage.count_rollouts(RolloutQuery())) for _ in range(3)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        rows = await storage.database.points.fetch(
            "SELECT pg_backend_pid()", (), link.in_seconds(30)
        )
        pids.add(rows[0][0])
    assert len(pids) <= 2  # none was replaced
    await assert_holds(storage, {1})


# The server


@pytest.fixture
def own() -> Iterator[PostgresServer]:
    """A server that only this test uses."""
    with running() as server:
        yield server


async def test_database_that_crashes_keeps_what_was_answered_and_memory_stays(
    own: PostgresServer, tmp_path: Path
) -> None:
    storage = storage_of(own.url, tmp_path)
    await storage.open()
    await commit_one(storage, 1)
    assert storage._session is not None
    epoch = storage._session.owned.epoch
    for key in (2, 3):
        await asyncio.to_thread(own.stop, "immediate")
        commit = asyncio.create_task(commit_one(storage, key))
        read = asyncio.create_task(storage.load(["r1"]))
        await asyncio.sleep(0.2)
        assert not commit.done()
        await asyncio.to_thread(own.start)
        await commit
        assert len(await read) == 1
    assert storage._session.owned.epoch == epoch
    await assert_holds(storage, {1, 2, 3})
    await storage.close()


async def test_database_that_went_back_in_time_is_noticed(
    own: PostgresServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_of(own.url, tmp_path)
    first = await storage.open()
    for key in (1, 2):
        await commit_one(storage, key)
    await asyncio.to_thread(own.stop)
    copy = own.folder / "copy"
    await asyncio.to_thread(shutil.copytree, own.data, copy)
    await asyncio.to_thread(own.start)
    for key in (3, 4, 5):
        await commit_one(storage, key)
    await asyncio.to_thread(own.stop)
    await asyncio.to_thread(own.restore, copy)
    await asyncio.to_thread(own.start)
    with pytest.raises(StorageFailed, match="went back in time: commit 5"):
        await commit_one(storage, 6)
    with caplog.at_level(logging.ERROR):
        second = await storage.open()
    assert [item.row.key for item in second.live] == [1, 2]
    assert second.store_id != first.store_id
    assert "commits up to 5, which were answered, are gone after commit 2" in caplog.text
    await commit_one(storage, 3)
    await assert_holds(storage, {1, 2, 3})
    third = await storage.open()
    assert third.store_id == second.store_id
    await storage.close()


async def test_database_that_is_away_at_start_is_said_in_one_line(tmp_path: Path) -> None:
    with Proxy(1) as proxy:
        port = proxy.port
    url = f"postgresql://someone:secret@127.0.0.1:{port}/lightning"
    storage = storage_of(url, tmp_path)
    with pytest.raises(StorageUnusable) as error:
        await storage.open()
    text = str(error.value)
    assert f"postgresql://127.0.0.1:{port}/lightning" in text
    assert "secret" not in text
    assert "\n" not in text


# Mutants: what each part of the protocol is for


async def _stale_commit(url: str, place: Path) -> None:
    """Let an owner write after another one has taken over."""
    former, owner = storage_of(url, place), storage_of(url, place)
    try:
        await former.open()
        await commit_one(former, 1)
        await end_lease(url, former)
        await owner.open()
        with pytest.raises(OwnershipLost):
            await commit_one(former, 2)
        await commit_one(owner, 2)
    finally:
        await former.close()
        await owner.close()


async def test_former_owner_is_stopped_by_the_epoch(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _stale_commit(postgres.url, tmp_path / "sound")
    looser = commits.SQL["fence"].replace("= $2 AND n.owner = $6", ">= $2 AND $6 <> ''")
    assert looser != commits.SQL["fence"]
    monkeypatch.setitem(commits.SQL, "fence", looser)
    commits._text.cache_clear()
    with pytest.raises(pytest.fail.Exception):
        await _stale_commit(postgres.url, tmp_path / "mutant")
    commits._text.cache_clear()


async def test_epoch_that_was_given_again_does_not_make_two_owners(
    postgres: PostgresServer, tmp_path: Path, admin: asyncpg.Connection
) -> None:
    """The database has lost the takeover of an owner, and another server takes the namespace with the same epoch."""
    first, second = (storage_of(postgres.url, tmp_path) for _ in range(2))
    await first.open()
    await commit_one(first, 1)
    assert first._session is not None
    ns = first._session.owned.ns
    await admin.execute("UPDATE ls_namespaces SET owner = '', epoch = epoch - 1 WHERE ns = $1", ns)
    await second.open()
    assert second._session is not None
    assert second._session.owned.epoch == first._session.owned.epoch
    with pytest.raises(OwnershipLost, match="has taken over"):
        await commit_one(first, 2)
    await commit_one(second, 3)
    await assert_holds(second, {1, 3})
    await first.close()
    await commit_one(second, 4)  # not given up by the other one
    await second.close()


async def _rewritten_history(storage: PostgresStorage, admin: asyncpg.Connection) -> None:
    """Let commits that were answered disappear under an owner."""
    await commit_one(storage, 1)
    assert storage._session is not None
    ns = storage._session.owned.ns
    for table in ("commits", "rollouts", "attempts", "spans", "inputs"):
        column = {"commits": "seq", "inputs": "rollout_key"}.get(table, "key")
        await admin.execute(f"DELETE FROM ls_{table} WHERE ns = $1 AND {column} > 0", ns)
    with pytest.raises(StorageFailed, match="went back in time"):
        await commit_one(storage, 2)


async def test_missing_commits_are_noticed_by_the_number(
    storage: PostgresStorage, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _rewritten_history(storage, admin)
    await storage.open()
    looser = commits.SQL["fence"].replace("= $3::bigint - 1", "<= $3::bigint - 1")
    monkeypatch.setitem(commits.SQL, "fence", looser)
    commits._text.cache_clear()
    with pytest.raises(pytest.fail.Exception):
        await _rewritten_history(storage, admin)
    commits._text.cache_clear()


async def _take_twice(url: str, place: Path) -> None:
    former, second = storage_of(url, place), storage_of(url, place)
    await former.open()
    try:
        with pytest.raises(StorageUnusable, match="is owned by the server at"):
            await second.open()
    finally:
        await second.close()
        await former.close()


async def test_live_lease_keeps_others_out(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _take_twice(postgres.url, tmp_path / "sound")
    look = lease.SQL["find_namespace"]
    monkeypatch.setitem(lease.SQL, "find_namespace", look.replace("s.address", "NULL AS address"))
    text = lease.SQL["take"]
    mutant = text[: text.index("    AND (")] + "RETURNING epoch"
    monkeypatch.setitem(lease.SQL, "take", mutant)
    with pytest.raises(pytest.fail.Exception):
        await _take_twice(postgres.url, tmp_path / "mutant")


async def _change_after_the_call(storage: PostgresStorage) -> None:
    """Change live objects once a commit has begun, as an engine that does not copy them would."""
    counters, worker = Counters(rollout_key=1), Worker(worker_id="w")
    changes = changes_of(counters=counters, workers={"w": worker})
    big = [spans(k, k, k, data=bytes(2 << 20)) for k in range(1, 4)]
    changes.spans = big
    commit = asyncio.ensure_future(storage.commit(changes))
    await asyncio.sleep(0)
    assert not commit.done()
    counters.rollout_key = 99
    worker.current_attempt_id = "later"
    await commit
    snapshot = await storage.open()
    assert snapshot.counters.rollout_key == 1
    assert snapshot.workers == [Worker(worker_id="w")]


async def test_commit_takes_live_objects_before_it_waits(
    storage: PostgresStorage, postgres: PostgresServer, tmp_path: Path
) -> None:
    await _change_after_the_call(storage)

    class Late(PostgresStorage):
        async def commit(self, changes: Changes) -> None:
            await asyncio.sleep(0)
            await super().commit(changes)

    mutant = Late(Database(postgres.url), namespace_of(tmp_path / "mutant"))
    await mutant.open()
    with pytest.raises(AssertionError):
        await _change_after_the_call(mutant)
    await mutant.close()


async def test_waiting_for_an_answer_ends_with_the_lease(
    own: PostgresServer, tmp_path: Path
) -> None:
    storage = storage_of(own.url, tmp_path)
    await storage.open()
    assert storage.database.membership._lease is not None
    await asyncio.to_thread(own.stop, "immediate")
    commit = asyncio.create_task(commit_one(storage, 1))
    await asyncio.sleep(0.1)
    assert not commit.done()
    storage.database.membership._lease.owned_until = link.boot_seconds()
    with pytest.raises(StorageFailed):
        await commit
    await asyncio.to_thread(own.start)
    await storage.open()
    await commit_one(storage, 1)
    await assert_holds(storage, {1})
    await storage.close()
