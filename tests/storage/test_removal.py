"""Removal of finished rollouts beside everything else that may happen to them at the same moment."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightningstore.service.operations.ingest import Tally
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import DataDamaged, RolloutNotFound, StoreError
from lightningstore.service.rules.limits import Retention
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.repair import repair
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, span_pb2, triplet_pb2, worker_pb2
from lightningstore.v1.completion_pb2 import WatchRolloutsRequest, WatchRolloutsResponse

from tests.calls import Calls
from tests.clock import ManualClock
from tests.contract.helpers import batch

pytestmark = pytest.mark.asyncio

ALL = Retention(finished_seconds=0.0)
BACKENDS = pytest.mark.parametrize("backend", ["memory", "sqlite"])


@asynccontextmanager
async def store_in(folder: Path, backend: str = "sqlite") -> AsyncIterator[Store]:
    config = Config(backend=backend, db=folder / "s.db")
    service = await open_store(config, ManualClock())
    yield service
    await service.close()


async def listed(store: Store) -> list[rollout_pb2.Rollout]:
    return list((await Calls(store).list_rollouts(rollout_pb2.ListRolloutsRequest())).rollouts)


async def watched(store: Store) -> list[str]:
    """Return the ids of the finishes that a watch from the beginning reports, up to one made for it."""
    spec = rollout_pb2.RolloutSpec(input_json=b"1")
    request = rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
    ((end,),) = [(await Calls(store).enqueue_rollouts(request)).rollouts]
    ends = rollout_pb2.CancelRolloutsRequest(rollout_ids=[end.rollout_id])
    await Calls(store).cancel_rollouts(ends)
    told: list[str] = []
    async for part in Calls(store).watch_rollouts(WatchRolloutsRequest(after_completion_number=0)):
        told += [r.rollout_id for r in WatchRolloutsResponse.FromString(part or b"").rollouts]
        if end.rollout_id in told:
            break
    return told


async def finished(store: Store, *names: str) -> None:
    """Enqueue rollouts and cancel them; the first has an attempt that succeeded, with a span."""
    specs = [rollout_pb2.RolloutSpec(rollout_id=name, input_json=b"1") for name in names]
    await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
    request = claim_pb2.StartAttemptRequest(rollout_id=names[0], worker_id="w")
    made = (await Calls(store).start_attempt(request)).rollout.latest_attempt
    await store.ingest.add_batch(batch(names[0], made.attempt_id, "s"), None, Tally())
    word = attempt_pb2.Attempt(rollout_id=names[0], attempt_id=made.attempt_id, status=3)
    await Calls(store).update_attempt(attempt_pb2.UpdateAttemptRequest(attempt=word))
    await Calls(store).cancel_rollouts(rollout_pb2.CancelRolloutsRequest(rollout_ids=names[1:]))


# Reads


@BACKENDS
@pytest.mark.parametrize("order_by", ["", "name"])
async def test_query_of_spans_that_are_removed_meanwhile_fails(
    tmp_path: Path, backend: str, order_by: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "a")
        request = span_pb2.QuerySpansRequest(rollout_id="a", order_by=order_by)
        answers = Calls(store).query_spans(request)
        assert await anext(answers) is None  # it stands, and no row is read yet
        assert await store.removal.retain(ALL) == 1
        with pytest.raises(RolloutNotFound):
            _ = [answer async for answer in answers]


@BACKENDS
async def test_triplets_of_a_rollout_that_is_removed_meanwhile_fail(
    tmp_path: Path, backend: str
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "a")
        answers = Calls(store).list_triplets(triplet_pb2.ListTripletsRequest(rollout_ids=["a"]))
        assert await anext(answers) is None
        assert await store.removal.retain(ALL) == 1
        with pytest.raises(RolloutNotFound):
            _ = [answer async for answer in answers]


async def test_spans_of_removed_rollouts_that_a_killed_server_left_are_deleted_later(
    tmp_path: Path,
) -> None:
    async with store_in(tmp_path) as store:
        await finished(store, "a", "b")
        storage = store.engine.storage
        leftover, storage.leftover_spans = storage.leftover_spans, nothing_left
        assert (await delete(store)).deleted_rollout_ids == ["a", "b"]
        storage.leftover_spans = leftover
        assert await leftover() == [1]
    assert tools.check(tmp_path / "s.db") == []
    async with store_in(tmp_path) as store:  # which keeps everything, so that no retention runs
        await store.deletions.sweep()
        assert await store.engine.storage.leftover_spans() == []
    assert tools.check(tmp_path / "s.db") == []
    with closing(sqlite3.connect(tmp_path / "s.db")) as connection:
        assert connection.execute("SELECT count(*) FROM spans").fetchone() == (0,)


async def nothing_left() -> list[int]:
    return []


# Calls beside a removal


def update(store: Store) -> Awaitable[Any]:
    record = rollout_pb2.Rollout(rollout_id="a", priority=9)
    return Calls(store).update_rollout(rollout_pb2.UpdateRolloutRequest(rollout=record))


def late_span(store: Store) -> Awaitable[Any]:
    return Calls(store).add_spans(span_pb2.AddSpansRequest(batch=batch("a", "latest", "late")))


def heartbeat(store: Store) -> Awaitable[Any]:
    reference = attempt_pb2.AttemptRef(rollout_id="a", attempt_id="latest")
    return Calls(store).heartbeat(worker_pb2.HeartbeatRequest(worker_id="w", attempts=[reference]))


def enqueue(store: Store) -> Awaitable[Any]:
    spec = rollout_pb2.RolloutSpec(rollout_id="a", input_json=b"1")
    return Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec]))


def reopen(store: Store) -> Awaitable[Any]:
    return Calls(store).start_attempt(claim_pb2.StartAttemptRequest(rollout_id="a"))


def numbers(store: Store) -> Awaitable[Any]:
    demand = span_pb2.SequenceIdDemand(rollout_id="a", attempt_id="latest", count=3)
    return Calls(store).allocate_sequence_ids(span_pb2.AllocateSequenceIdsRequest(demands=[demand]))


def cancel(store: Store) -> Awaitable[Any]:
    return Calls(store).cancel_rollouts(rollout_pb2.CancelRolloutsRequest(rollout_ids=["a", "b"]))


def delete(store: Store) -> Awaitable[Any]:
    request = rollout_pb2.DeleteRolloutsRequest(rollout_ids=["a", "b"])
    return Calls(store).delete_rollouts(request)


def remove(store: Store) -> Awaitable[Any]:
    return store.removal.retain(ALL)


CALLS: list[Callable[[Store], Awaitable[Any]]] = [
    *(update, late_span, heartbeat, enqueue, reopen, numbers, cancel, delete, remove),
]


async def consistent(store: Store) -> None:
    """Show that whatever is listed can be read, and that nothing else is there."""
    for record in await listed(store):
        assert record.input_json
        assert record.attempt_count == 0 or record.latest_attempt.attempt_id
        request = rollout_pb2.GetRolloutRequest(rollout_id=record.rollout_id)
        await Calls(store).get_rollout(request)
    assert set(await watched(store)) <= {r.rollout_id for r in await listed(store)}
    counts = store.engine.live.state.counters.rollouts
    assert sum(counts.values()) == len(await listed(store))


@BACKENDS
@pytest.mark.parametrize("first", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("call", CALLS[:-1], ids=lambda call: call.__name__)
async def test_call_in_the_same_commit_as_a_removal_leaves_no_half_rollout(
    tmp_path: Path, backend: str, call: Callable[[Store], Awaitable[Any]], first: bool
) -> None:
    async with store_in(tmp_path, backend) as store:
        await finished(store, "a", "b", "c")
        calls = [call(store), remove(store)] if first else [remove(store), call(store)]
        await asyncio.gather(*calls, return_exceptions=True)
        await consistent(store)
    if backend == "sqlite":
        assert tools.check(tmp_path / "s.db") == []


@BACKENDS
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rounds=st.lists(st.lists(st.tuples(st.sampled_from(CALLS), st.integers(0, 6)), max_size=6)))
async def test_calls_in_any_order_beside_removals_leave_no_half_rollout(
    tmp_path_factory: pytest.TempPathFactory, backend: str, rounds: list[list[tuple[Any, int]]]
) -> None:
    """Each call starts after some turns of the loop: between, within and after the commits of others."""
    folder = tmp_path_factory.mktemp("store")

    async def later(store: Store, call: Callable[[Store], Awaitable[Any]], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        with suppress(StoreError):
            await call(store)

    async with store_in(folder, backend) as store:
        await finished(store, "a", "b")
        for calls in rounds:
            await asyncio.gather(*(later(store, *one) for one in calls))
            await consistent(store)
    if backend == "sqlite":
        assert tools.check(folder / "s.db") == []


async def until(condition: Callable[[], bool]) -> None:
    """Let other tasks run until a condition holds."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    pytest.fail("the condition never holds")


async def test_rollout_deleted_before_its_finish_is_durable_is_reported_by_no_watch(
    tmp_path: Path,
) -> None:
    async with store_in(tmp_path) as store:
        await enqueue(store)
        state, storage = store.engine.live.state, store.engine.storage
        commit, free = storage.commit, asyncio.Event()

        async def held(changes: Any) -> None:
            await free.wait()
            await commit(changes)

        storage.commit = held
        request = rollout_pb2.CancelRolloutsRequest(rollout_ids=["a"])
        cancelling = asyncio.ensure_future(Calls(store).cancel_rollouts(request))
        await until(lambda: not state.entries["a"].is_live())
        deleting = asyncio.ensure_future(delete(store))
        await until(lambda: "a" not in state.entries)
        unknown = asyncio.ensure_future(
            Calls(store).get_rollout(rollout_pb2.GetRolloutRequest(rollout_id="a"))
        )
        await asyncio.sleep(0.02)
        assert not unknown.done(), "a crash could still undo the deletion"
        free.set()
        await cancelling
        assert (await deleting).deleted_rollout_ids == ["a"]
        with pytest.raises(RolloutNotFound):
            await unknown
        assert "a" not in await watched(store)


# Damaged files


def tear(path: Path, name: str) -> None:
    """Leave of a rollout what an upsert after its removal left: its row, and nothing else."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        where = "(SELECT key FROM rollouts WHERE rollout_id = ?)"
        for table in ("inputs", "attempts", "spans"):
            connection.execute(f"DELETE FROM {table} WHERE rollout_key = {where}", [name])


async def test_half_a_rollout_takes_down_no_list_no_watch_and_no_retention(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_in(tmp_path) as store:
        await finished(store, "a", "torn", "c")
    tear(tmp_path / "s.db", "torn")
    with caplog.at_level(logging.ERROR):
        async with store_in(tmp_path) as store:
            assert [r.rollout_id for r in await listed(store)] == ["a", "c"]
            assert (await watched(store))[:-1] == ["a", "c"]
            with pytest.raises(DataDamaged, match="'torn' is damaged"):
                await Calls(store).get_rollout(rollout_pb2.GetRolloutRequest(rollout_id="torn"))
            assert store.engine.storage.damaged_records == 1
            request = rollout_pb2.DeleteRolloutsRequest(rollout_ids=["a", "torn", "none"])
            answer = await Calls(store).delete_rollouts(request)
            assert answer.deleted_rollout_ids == ["a"]
            assert answer.kept_rollout_ids == ["torn"]
            assert answer.missing_rollout_ids == ["none"]
            assert await store.removal.retain(ALL) == 2  # with the one that ended the watch
            assert await listed(store) == []
    told = [r.message for r in caplog.records if "is damaged" in r.message]
    assert len(told) == 1
    assert "'torn'" in told[0]
    assert "check --repair" in told[0]


async def test_damaged_page_costs_what_lies_on_it_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with store_in(tmp_path) as store:
        specs = [
            rollout_pb2.RolloutSpec(rollout_id=f"r{n}", input_json=b'"%s"' % (b"x" * 30_000))
            for n in range(8)
        ]
        await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
        ids = [spec.rollout_id for spec in specs]
        await Calls(store).cancel_rollouts(rollout_pb2.CancelRolloutsRequest(rollout_ids=ids))
    overwrite_leaf(tmp_path / "s.db", "inputs", 1)
    usable: list[bool] = []
    with caplog.at_level(logging.ERROR):
        async with store_in(tmp_path) as store:
            store.engine.watch_usability(usable.append)
            left = [r.rollout_id for r in await listed(store)]
            assert 0 < len(left) < 8
            lost = sorted(set(ids) - set(left))
            for _ in range(20):
                with pytest.raises(DataDamaged):
                    await Calls(store).get_rollout(
                        rollout_pb2.GetRolloutRequest(rollout_id=lost[0])
                    )
            assert set(await watched(store)) >= set(left)
            assert store.engine.committer.failure is None
    assert usable == []
    told = [r for r in caplog.records if "could not be read" in r.message]
    assert 1 <= len(told) < 20


def overwrite_leaf(path: Path, table: str, which: int) -> None:
    """Overwrite the header of a page that holds rows of a table."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        ((root,),) = connection.execute(query, [table]).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    with path.open("r+b") as file:
        file.seek((root - 1) * size)
        page = file.read(size)
        assert page[0] == 5, "an interior page of a table: https://www.sqlite.org/fileformat.html"
        cell = int.from_bytes(page[12 + 2 * which : 14 + 2 * which], "big")
        leaf = int.from_bytes(page[cell : cell + 4], "big")
        file.seek((leaf - 1) * size)
        file.write(b"\xff" * 100)


async def test_repair_removes_half_rollouts_and_keeps_a_copy(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with store_in(tmp_path) as store:
        await finished(store, "a", "torn", "c")
        await finished(store, "garbled")
    tear(path, "torn")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE rollouts SET record = x'ff' WHERE rollout_id = 'garbled'")
        connection.execute("UPDATE rollouts SET status = 1 WHERE rollout_id = 'c'")
        connection.execute(
            "INSERT INTO attempts (key, rollout_key, status, last_sequence_id, record)"
            " VALUES (99, 99, 3, 0, x'')"
        )
    assert tools.check(path) != []
    done = repair(path)
    assert any("'torn'" in line and "input is missing" in line for line in done)
    assert any("'garbled'" in line and "cannot be read" in line for line in done)
    assert tools.check(path) == []
    assert tools.check(tmp_path / "s.db.before-repair") != []
    async with store_in(tmp_path) as store:
        assert [r.rollout_id for r in await listed(store)] == ["a", "c"]
        assert store.engine.live.state.counters.spans == 1
        await finished(store, "torn")
    assert repair(path) == []


async def test_repair_leaves_a_file_with_damaged_pages_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with store_in(tmp_path) as store:
        await finished(store, "a")
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'spans'"
        ((page,),) = connection.execute(query).fetchall()
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * 100)
    with pytest.raises(Exception, match="restore a backup"):
        repair(path)
