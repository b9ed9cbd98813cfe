"""Rows of a data file with values that cannot be: each costs the call that names it, and no other."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.service.engine.state import SMALL_INPUT_BYTES
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.repair import repair
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
    worker_pb2,
)

from tests.calls import Calls
from tests.clock import ManualClock

pytestmark = pytest.mark.asyncio

NAMES = ("r0", "r1", "r2")
#: What a stranger does to r1, and what `check` says about it.
DEFECTS = {
    "empty input": ("UPDATE inputs SET input_json = x'' WHERE rollout_key = 2", "'r1' is empty"),
    "text input": (
        "UPDATE inputs SET input_json = '\"text\"' WHERE rollout_key = 2",
        "inputs.input_json is not of type BLOB in 1 row",
    ),
    "number as input": (
        "UPDATE inputs SET input_json = 7 WHERE rollout_key = 2",
        "'r1' is not a blob",
    ),
    "text record": (
        "UPDATE rollouts SET record = 'text' WHERE key = 2",
        "rollouts.record is not of type BLOB in 1 row",
    ),
    "text position": (
        "UPDATE rollouts SET position = 'first' WHERE key = 2",
        "rollouts.position is not of type INTEGER in 1 row",
    ),
    "text that is not UTF-8": (
        "UPDATE rollouts SET record = CAST(x'ff' AS TEXT) WHERE key = 2",
        "rollouts.record is not of type BLOB in 1 row",
    ),
}
defects = pytest.mark.parametrize(("defect", "finding"), DEFECTS.values(), ids=DEFECTS)


_opened: list[Store] = []


@pytest_asyncio.fixture(autouse=True)
async def _closed() -> AsyncIterator[None]:
    yield
    while _opened:
        await _opened.pop().close()


async def opened(folder: Path) -> Store:
    store = await open_store(Config(backend="sqlite", db=folder / "s.db"), ManualClock())
    _opened.append(store)
    return store


async def enqueue(store: Store) -> None:
    """Enqueue rollouts whose inputs are in the file alone."""
    specs = [
        rollout_pb2.RolloutSpec(rollout_id=name, input_json=b'"%s"' % (b"x" * SMALL_INPUT_BYTES))
        for name in NAMES
    ]
    await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))


def change(folder: Path, *statements: str) -> None:
    """Change the file behind the store's back."""
    with closing(sqlite3.connect(folder / "s.db", isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount == 1


async def claim(store: Store) -> list[str]:
    request = claim_pb2.DequeueRolloutsRequest(limit=10)
    return [r.rollout_id for r in (await Calls(store).dequeue_rollouts(request)).rollouts]


async def get(store: Store, rollout_id: str) -> str:
    request = rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)
    answer = await Calls(store).get_rollout(request)
    return str(answer.rollout.rollout_id)


@pytest.mark.parametrize(
    ("defect", "finding"), [item for name, item in DEFECTS.items() if "input" in name]
)
async def test_damaged_rollout_of_a_running_server_is_skipped_by_a_claim(
    tmp_path: Path, defect: str, finding: str
) -> None:
    store = await opened(tmp_path)
    await enqueue(store)
    change(tmp_path, defect)
    with pytest.raises(DataDamaged, match=r"'r1'|requested data"):
        await get(store, "r1")
    assert await claim(store) == ["r0", "r2"]
    assert store.engine.storage.damaged_records >= 1
    await store.close()
    assert any(finding in line for line in tools.check(tmp_path / "s.db"))


@defects
async def test_damaged_rollout_does_not_keep_a_server_from_starting(
    tmp_path: Path, defect: str, finding: str
) -> None:
    store = await opened(tmp_path)
    await enqueue(store)
    await store.close()
    change(tmp_path, defect)
    store = await opened(tmp_path)
    assert store.engine.storage.damaged_records == 1
    with pytest.raises(DataDamaged):
        await get(store, "r1")
    listed = await Calls(store).list_rollouts(rollout_pb2.ListRolloutsRequest())
    assert [rollout.rollout_id for rollout in listed.rollouts] == ["r0", "r2"]
    assert await claim(store) == ["r0", "r2"]
    info = await Calls(store).get_server_info(statistics_pb2.GetServerInfoRequest())
    assert info is not None
    assert store.engine.committer.failure is None
    await store.close()
    assert any(finding in line for line in tools.check(tmp_path / "s.db"))


@defects
async def test_repair_mends_or_removes_a_damaged_rollout(
    tmp_path: Path, defect: str, finding: str
) -> None:
    store = await opened(tmp_path)
    await enqueue(store)
    await store.close()
    change(tmp_path, defect)
    assert any(finding in line for line in tools.check(tmp_path / "s.db"))
    assert len(repair(tmp_path / "s.db")) > 1
    assert tools.check(tmp_path / "s.db") == []
    store = await opened(tmp_path)
    assert set(await claim(store)) >= {"r0", "r2"}
    assert store.engine.storage.damaged_records == 0
    await store.close()


async def test_heartbeat_counts_for_attempts_beside_one_of_a_damaged_rollout(
    tmp_path: Path,
) -> None:
    store = await opened(tmp_path)
    await enqueue(store)
    request = claim_pb2.DequeueRolloutsRequest(limit=10)
    claimed = (await Calls(store).dequeue_rollouts(request)).rollouts
    attempts = [
        attempt_pb2.AttemptRef(rollout_id=r.rollout_id, attempt_id=r.latest_attempt.attempt_id)
        for r in claimed
    ]
    await store.close()
    change(tmp_path, "UPDATE attempts SET record = 'text' WHERE rollout_key = 2")
    store = await opened(tmp_path)
    beat = worker_pb2.HeartbeatRequest(worker_id="w", attempts=attempts)
    answer = await Calls(store).heartbeat(beat)
    assert [stop.attempt.rollout_id for stop in answer.stops] == ["r1"]
    await store.close()


async def test_damaged_resources_workers_and_request_ids_are_left_out(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    for name in NAMES:
        custom = resources_pb2.CustomResource(value_json=b"1")
        request = resources_pb2.AddResourcesRequest(
            resources_id=name, resources={"c": resources_pb2.Resource(custom=custom)}
        )
        await Calls(store).add_resources(request)
        await Calls(store).heartbeat(worker_pb2.HeartbeatRequest(worker_id=name))
        spec = rollout_pb2.RolloutSpec(rollout_id=name, input_json=b"1")
        await Calls(store).enqueue_rollouts(
            rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec], request_id=name)
        )
    await store.close()
    change(
        tmp_path,
        "UPDATE resources SET record = 'text' WHERE resources_id = 'r1'",
        "UPDATE resources SET version = 'two' WHERE resources_id = 'r2'",
        "UPDATE workers SET record = 7 WHERE worker_id = 'r1'",
        "UPDATE requests SET answer = 'text' WHERE request_id = 'r1'",
    )
    assert len(tools.check(tmp_path / "s.db")) >= 4
    store = await opened(tmp_path)
    listed = await Calls(store).list_resources(resources_pb2.ListResourcesRequest(page_size=2))
    assert [r.resources_id for r in listed.resources] == ["r0", "r2"]
    with pytest.raises(DataDamaged, match="resources 'r1'"):
        await Calls(store).get_resources(resources_pb2.GetResourcesRequest(resources_id="r1"))
    workers = await Calls(store).list_workers(worker_pb2.ListWorkersRequest())
    assert [worker.worker_id for worker in workers.workers] == ["r0", "r2"]
    assert await claim(store) == list(NAMES)
    assert store.engine.storage.damaged_records == 4
    await store.close()
    repair(tmp_path / "s.db")
    assert tools.check(tmp_path / "s.db") == []


@pytest.mark.parametrize("column", ["data = x'ffff'", "data = 'text'", "encoding = 1"])
async def test_damaged_batch_of_spans_fails_queries_of_its_attempt(
    tmp_path: Path, column: str
) -> None:
    store = await opened(tmp_path)
    await enqueue(store)
    request = claim_pb2.DequeueRolloutsRequest(limit=10)
    claimed = (await Calls(store).dequeue_rollouts(request)).rollouts
    for rollout in claimed:
        batch = span_pb2.SpanBatch(
            rollout_id=rollout.rollout_id, attempt_id=rollout.latest_attempt.attempt_id
        )
        batch.spans.add(
            name="n",
            trace_id=b"t" * 16,
            span_id=b"s" * 8,
            start_time_unix_nano=1,
            end_time_unix_nano=2,
        )
        await Calls(store).add_spans(span_pb2.AddSpansRequest(batch=batch))
    change(tmp_path, f"UPDATE spans SET {column} WHERE rollout_key = 2")

    async def query(rollout_id: str) -> int:
        asked = span_pb2.QuerySpansRequest(rollout_id=rollout_id, order_by="name")
        return len([answer async for answer in Calls(store).query_spans(asked) if answer])

    with pytest.raises(DataDamaged):
        await query("r1")
    assert await query("r0") >= 1
    await store.close()
    assert tools.check(tmp_path / "s.db") != []


@pytest.mark.parametrize(
    ("defect", "finding"),
    [
        ("UPDATE labels SET value = '8' WHERE rollout_key = 1", "the labels of 1 rollouts"),
        ("DELETE FROM labels WHERE rollout_key = 1", "the labels of 1 rollouts"),
        ("INSERT INTO labels VALUES (2, 'x', 'y')", "the labels of 1 rollouts"),
        ("INSERT INTO labels VALUES (9, 'x', 'y')", "1 labels without a rollout"),
        ("UPDATE labels SET value = x'38' WHERE rollout_key = 1", "labels.value is not of type"),
        ("UPDATE rollouts SET queue = 'other' WHERE key = 2", "the queue of 1 rollouts"),
    ],
)
async def test_queue_and_labels_are_repaired_from_the_records(
    tmp_path: Path, defect: str, finding: str
) -> None:
    store = await opened(tmp_path)
    specs = [
        rollout_pb2.RolloutSpec(input_json=b"1", labels={"run": "7"}),
        rollout_pb2.RolloutSpec(input_json=b"2", queue="gpu"),
    ]
    await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs))
    await store.close()
    change(tmp_path, defect)
    assert any(finding in line for line in tools.check(tmp_path / "s.db"))
    assert len(repair(tmp_path / "s.db")) > 1
    assert tools.check(tmp_path / "s.db") == []
    store = await opened(tmp_path)
    for query in ({"labels": {"run": "7"}}, {"queues": ["gpu"]}):
        request = rollout_pb2.ListRolloutsRequest(**query)
        assert len((await Calls(store).list_rollouts(request)).rollouts) == 1
