"""Namespaces as files: creating and deleting one survives a crash between any two steps."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Self

import pytest
from lightningstore.service.rules.errors import NamespaceExists, StorageFailed, StorageUnusable
from lightningstore.service.storage.back_ends import catalog_at
from lightningstore.service.storage.catalog import Found, MemoryCatalog
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog, folder_of
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.service.storage.testing.records import attempt, finished, put, rollout

pytestmark = pytest.mark.asyncio

RELEASED = Path(__file__).parent / "released"
#: Runs changes of a catalog, each in a process of its own that ends before the n-th step that touches the folder.
CRASHING = """
import asyncio, os, sys
from pathlib import Path
from typing import Self
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog, folder_of

path = Path(sys.argv[1])

def run(change, most):
    steps = 0

    def count(event, arguments):
        nonlocal steps
        if event in ("open", "os.remove", "os.rename", "os.chmod", "os.mkdir", "sqlite3.connect"):
            if f"{path.name}.d" in str(arguments[0]):
                steps += 1
                if steps > most:
                    os._exit(7)

    sys.addaudithook(count)
    catalog = SqliteCatalog(folder_of(path), like=path)
    work = catalog.create("a", b"settings") if change == "create" else catalog.delete("a")
    asyncio.run(work)
    os._exit(0)

for line in sys.stdin:
    change, most = line.split()
    child = os.fork()
    if not child:
        run(change, int(most))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Crashes:
    """Changes of a catalog that end after some steps."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", CRASHING, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def crash(self, change: str, steps: int) -> bool:
        """Run a change that ends after that number of steps; return whether it ended before."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(change, steps, file=self._process.stdin, flush=True)
        code = self._process.stdout.readline().strip()
        assert code in ("0", "7"), code
        return code == "7"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()


async def default_file(folder: Path) -> Path:
    """Return the file of a default namespace."""
    storage = SqliteStorage(folder / "s.db")
    await storage.open()
    await storage.close()
    return storage.path


async def facts(path: Path) -> tuple[str, bytes]:
    """Return store id and settings of a namespace, by opening it."""
    storage = SqliteCatalog(folder_of(path), like=path).storage("a")
    snapshot = await storage.open()
    await storage.close()
    return snapshot.store_id, snapshot.settings


def files(path: Path) -> list[str]:
    """Return the names of the files of namespaces; locks of processes that crashed begin with a dot."""
    return sorted(p.name for p in path.with_name(f"{path.name}.d").glob("[!.]*"))


async def test_crash_while_creating_leaves_a_complete_namespace_or_none(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    steps = absent = 0
    with Crashes(path) as crashes:
        while crashes.crash("create", steps):
            found = await catalog.survey()
            assert [name for name in files(path) if not name.endswith(".db")] == []
            absent += not found
            for namespace in found:
                assert (namespace.failure, namespace.settings) == ("", b"settings")
                assert await facts(path) == (namespace.store_id, b"settings")
                await catalog.delete("a")
            await catalog.create("a", b"again")
            assert (await facts(path))[1] == b"again"
            await catalog.delete("a")
            assert files(path) == []
            steps += 1
    assert absent > 3


async def test_crash_while_deleting_leaves_a_complete_namespace_or_none(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    await catalog.create("a", b"settings")
    steps = present = 0
    with Crashes(path) as crashes:
        while crashes.crash("delete", steps):
            found = await catalog.survey()
            present += len(found)
            assert [name for name in files(path) if not name.endswith(".db")] == []
            if found:
                assert (await facts(path))[1] == b"settings"
            else:
                await catalog.create("a", b"settings")
            steps += 1
    assert 0 < present < steps
    assert await catalog.survey() == []
    await catalog.delete("a")  # a repeat


async def test_log_of_a_deleted_namespace_never_reaches_one_of_the_same_name(
    tmp_path: Path,
) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    await catalog.create("a", b"old")
    folder = path.with_name(f"{path.name}.d")
    (folder / "a.db").rename(folder / "a.gone")  # a crash came here
    (folder / "a.db-wal").write_bytes(b"the log of the deleted file")
    assert await catalog.survey() == []
    assert files(path) == []
    await catalog.create("a", b"new")
    assert (await facts(path))[1] == b"new"


async def test_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    await catalog.create("a", b"first")
    before = await facts(path)
    with pytest.raises(NamespaceExists):
        await catalog.create("a", b"second")
    assert await facts(path) == before


async def test_file_that_another_process_uses_is_not_deleted(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    await catalog.create("a", b"")
    storage = catalog.storage("a")
    await storage.open()
    with pytest.raises(StorageFailed, match="in use"):
        await catalog.delete("a")
    await storage.close()
    assert [found.name for found in await catalog.survey()] == ["a"]


async def test_survey_tells_what_must_be_opened_at_start(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    for name in ("idle", "queued", "running", "empty", "crashed"):
        await catalog.create(name, name.encode())
    contents = {
        "idle": [finished(1, 1)],
        "queued": [finished(1, 1), rollout(2)],
        "running": [finished(1, 1), attempt(1, 1)],
        "crashed": [],
    }
    for name, rows in contents.items():
        storage = catalog.storage(name)
        await storage.open()
        await put(storage, *rows)
        await storage.close()
    folder = path.with_name(f"{path.name}.d")
    (folder / "crashed.db-wal").write_bytes(b"")  # as of a process that was killed
    found = {item.name: item for item in await catalog.survey()}
    assert {name for name, item in found.items() if item.live} == {"queued", "running", "crashed"}
    assert found["idle"].settings == b"idle"
    assert found["idle"].oldest_ns > 0
    assert found["empty"].oldest_ns == 0


async def test_survey_names_files_that_cannot_be_read_and_skips_others(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    catalog = SqliteCatalog(folder_of(path), like=path)
    await catalog.create("good", b"")
    folder = path.with_name(f"{path.name}.d")
    (folder / "bad.db").write_bytes(b"no database")
    (folder / "empty.db").touch()
    for name in ("README.txt", "UPPER.db", ".good.db.lock", "good.db.rescued-1"):
        (folder / name).touch()
    found = {item.name: item.failure for item in await catalog.survey()}
    assert sorted(found) == ["bad", "empty", "good"]
    assert found["good"] == ""
    assert "not a SQLite database" in found["bad"]
    assert found["empty"]
    assert (folder / "README.txt").exists()


async def test_files_of_released_schemas_are_namespaces(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    folder = path.with_name(f"{path.name}.d")
    folder.mkdir()
    released = sorted(RELEASED.glob("*.db.gz"))
    assert released
    for number, file in enumerate(released):
        (folder / f"old-{number}.db").write_bytes(gzip.decompress(file.read_bytes()))
    catalog = SqliteCatalog(folder_of(path), like=path)
    for found in await catalog.survey():
        assert found.failure == ""
        storage = catalog.storage(found.name)
        snapshot = await storage.open()
        assert snapshot.settings == b""
        await storage.close()


async def test_opening_never_creates_a_file(tmp_path: Path) -> None:
    path = await default_file(tmp_path)
    with pytest.raises(StorageUnusable):
        await SqliteCatalog(folder_of(path), like=path).storage("a").open()
    assert files(path) == []
    await SqliteCatalog(folder_of(path), like=path).create("b", b"")
    with pytest.raises(StorageUnusable):
        await SqliteCatalog(folder_of(path), like=path).storage("a").open()
    assert files(path) == ["b.db"]


async def test_memory_has_a_catalog_of_the_same_kind() -> None:
    catalog = catalog_at("memory:", None)
    assert isinstance(catalog, MemoryCatalog)
    assert await catalog.survey() == []
    await catalog.create("a", b"settings")
    assert await catalog.survey() == [Found("a", settings=b"settings")]
    assert (await catalog.storage("a").open()).settings == b"settings"
    await catalog.delete("a")
    await catalog.delete("a")
    assert await catalog.survey() == []
