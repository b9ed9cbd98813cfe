"""The data file moved, deleted or cut short under an open store, and paths that are not safe to use."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.errors import DataFileLost, StorageFailed, StorageUnusable
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.location import refuse_single_mount
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.v1 import rollout_pb2

from tests.calls import Calls

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def service(tmp_path: Path) -> AsyncIterator[Store]:
    service = await open_store(Config(backend="sqlite", db=tmp_path / "s.db"))
    await enqueue(service, "before")
    yield service
    await service.close()


async def enqueue(store: Store, name: str) -> None:
    spec = rollout_pb2.RolloutSpec(rollout_id=name, input_json=b"1")
    await Calls(store).enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec]))


async def names(store: Store) -> list[str]:
    answer = await Calls(store).list_rollouts(rollout_pb2.ListRolloutsRequest())
    return [record.rollout_id for record in answer.rollouts]


async def usable(store: Store, *, yes: bool) -> None:
    """Return once the store is usable, or is not."""
    changed = asyncio.Event()
    store.engine.watch_usability(lambda now: changed.set() if now is yes else None)
    while (store.engine.committer.failure is None) is not yes:
        await asyncio.wait_for(changed.wait(), 30)
        await asyncio.sleep(0)


async def stored_in(path: Path) -> list[str]:
    service = await open_store(Config(backend="sqlite", db=path))
    try:
        return await names(service)
    finally:
        await service.close()


async def test_moved_file_stops_the_store_and_is_named_until_it_is_back(
    service: Store, tmp_path: Path
) -> None:
    path, moved = tmp_path / "s.db", tmp_path / "elsewhere.db"
    path.rename(moved)
    await usable(service, yes=False)
    with pytest.raises(DataFileLost, match=f"was moved .*{moved}"):
        await enqueue(service, "during")
    with pytest.raises(StorageFailed):
        await names(service)
    copy = tmp_path / "copy.db"
    while not copy.exists() or await stored_in(copy) != ["before"]:  # its log is being folded in
        shutil.copy(moved, copy)
    assert tools.check(copy) == []
    moved.rename(path)
    await usable(service, yes=True)
    await enqueue(service, "after")
    assert await names(service) == ["before", "after"]


async def test_deleted_file_stops_the_store_and_is_rescued_at_its_end(tmp_path: Path) -> None:
    service = await open_store(Config(backend="sqlite", db=tmp_path / "s.db"))
    await enqueue(service, "before")
    for path in tmp_path.glob("s.db*"):
        path.unlink()
    await usable(service, yes=False)
    with pytest.raises(DataFileLost, match=f"was deleted .*cp /proc/{os.getpid()}/fd/"):
        await enqueue(service, "during")
    await service.close()
    (rescued,) = tmp_path.glob("s.db.rescued-*")
    assert tools.check(rescued) == []
    assert await stored_in(rescued) == ["before"]


async def test_removed_log_costs_nothing_that_was_answered(service: Store, tmp_path: Path) -> None:
    (tmp_path / "s.db-wal").unlink()
    await usable(service, yes=False)
    await usable(service, yes=True)
    await enqueue(service, "after")
    assert await names(service) == ["before", "after"]
    await service.close()
    assert await stored_in(tmp_path / "s.db") == ["before", "after"]


async def test_file_cut_short_stops_the_store_and_is_not_made_longer(
    service: Store, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    os.truncate(path, 16384)
    await usable(service, yes=False)
    with pytest.raises(DataFileLost, match=r"was cut short .* to 16384 bytes.*restore a backup"):
        await enqueue(service, "during")
    await service.close()
    assert path.stat().st_size == 16384


async def test_path_of_a_lost_file_is_not_served_a_second_time(
    service: Store, tmp_path: Path
) -> None:
    path = tmp_path / "s.db"
    path.rename(tmp_path / "elsewhere.db")
    for _ in range(2):
        with pytest.raises(StorageUnusable, match="in use by another server"):
            await SqliteStorage(path).open()
        assert not path.exists()
        await usable(service, yes=False)


async def test_closed_store_leaves_no_lock_behind(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    await storage.close()
    assert [path.name for path in tmp_path.iterdir()] == ["s.db"]


async def test_file_that_is_a_mount_of_its_own_is_refused(tmp_path: Path) -> None:
    place = tmp_path / "with space.db"
    place.touch()
    mounts = tmp_path / "mountinfo"
    escaped = str(place).replace(" ", r"\040")
    mounts.write_text(f"36 35 98:0 /mnt1 {escaped} rw,noatime master:1 - ext3 /dev/root rw\n")
    with pytest.raises(StorageUnusable, match="mount the folder"):
        refuse_single_mount(place, mounts)
    refuse_single_mount(tmp_path / "other.db", mounts)
    refuse_single_mount(place, tmp_path / "no such file")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file")
async def test_bind_mounted_file_is_refused(tmp_path: Path) -> None:
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    source.touch()
    target.touch()
    command = ["mount", "--bind", str(source), str(target)]
    if subprocess.run(command, check=False).returncode != 0:  # noqa: ASYNC221
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(StorageUnusable, match="mounted by itself"):
            await SqliteStorage(target).open()
    finally:
        subprocess.run(["umount", "-l", str(target)], check=True)  # noqa: ASYNC221
