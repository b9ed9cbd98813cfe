"""Files that earlier versions wrote open as they were. `released/` has one of each schema, made by its server."""

from __future__ import annotations

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lightningstore.client import open_store
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.repair import repair

RELEASED = sorted((Path(__file__).parent / "released").glob("schema-*.db.gz"))

pytestmark = pytest.mark.asyncio


async def test_every_released_schema_has_its_file() -> None:
    assert len(RELEASED) in (datafile.SCHEMA_VERSION - 1, datafile.SCHEMA_VERSION)


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.name)
async def test_released_file_opens_with_all_that_is_in_it(released: Path, tmp_path: Path) -> None:
    """r0 succeeded with three spans, r1 failed and waits for its retry, r4 is cancelled, the rest wait."""
    file = tmp_path / "old.db"
    file.write_bytes(gzip.decompress(released.read_bytes()))
    async with open_store(f"sqlite:///{file}") as store:
        rollouts = {r.rollout_id: r async for r in store.iter_rollouts()}
        assert {i: r.status.value for i, r in rollouts.items()} == {
            "r0": "succeeded",
            "r1": "requeuing",
            "r2": "queuing",
            "r3": "queuing",
            "r4": "cancelled",
        }
        assert [rollouts[i].completion_number for i in ("r0", "r4")] == [1, 2]
        assert rollouts["r3"].input == {"n": 3}
        spans = [span async for span in store.query_spans("r0")]
        assert [(s.name, s.sequence_id) for s in spans] == [(f"span-{n}", n + 1) for n in range(3)]
        latest = await store.get_resources()
        assert latest.resources["llm"].model == "m"
        assert latest.publish_number == (await store.get_statistics()).latest_publish_number
        assert await store.get_resources(publish_number=latest.publish_number) == latest
        assert await store.get_resources(latest.resources_id, version=latest.version) == latest
        assert [w.worker_id for w in await store.list_workers()] == ["w"]
        claimed = await store.dequeue_rollouts(9)
        assert [r.rollout_id for r in claimed] == ["r2", "r3", "r1"]
        updated = await store.update_resources(latest.resources_id, {})
        assert updated.publish_number == latest.publish_number + 1
        assert await store.get_resources(publish_number=latest.publish_number) == latest
    assert tools.check(file) == []


@pytest.mark.parametrize("released", RELEASED, ids=lambda path: path.name)
async def test_released_file_is_checked_restored_and_repaired_as_it_is(
    released: Path, tmp_path: Path
) -> None:
    """A backup of an earlier version is restored by this one, before any server of it has opened the file."""
    file, copy = tmp_path / "old.db", tmp_path / "copy.db"
    file.write_bytes(gzip.decompress(released.read_bytes()))
    assert tools.check(file) == []
    tools.restore(file, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("UPDATE rollouts SET status = 4 WHERE rollout_id = 'r2'")
    assert tools.check(copy) != []
    assert repair(copy) != []
    assert tools.check(copy) == []
    async with open_store(f"sqlite:///{copy}") as store:
        assert len(await store.dequeue_rollouts(9)) == 3
