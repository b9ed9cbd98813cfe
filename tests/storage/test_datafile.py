"""Whose file it is, and who may open it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.store import SqliteStorage

pytestmark = pytest.mark.asyncio


def foreign(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (a)")
    connection.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database at all" * 100)


async def newer(path: Path) -> None:
    storage = SqliteStorage(path)
    await storage.open()
    await storage.close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {datafile.SCHEMA_VERSION + 1}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    connection.close()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (foreign, "not a lightningstore database"),
        (garbage, "not a SQLite database"),
        (newer, "newer version"),
    ],
)
async def test_file_that_is_not_ours_is_refused_untouched(
    tmp_path: Path, make: object, text: str
) -> None:
    path = tmp_path / "s.db"
    made = make(path)  # type: ignore[operator]
    if made is not None:
        await made
    before = path.read_bytes()
    with pytest.raises(StorageUnusable, match=text):
        await SqliteStorage(path).open()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


@pytest.mark.parametrize(
    "use",
    [
        datafile.Lock,
        tools.check,
        tools.vacuum,
        lambda path: tools.backup(path, path.with_name("copy.db")),
        lambda path: tools.restore(path, path.with_name("new.db")),
    ],
    ids=["serve", "check", "vacuum", "backup", "restore"],
)
async def test_what_is_no_regular_file_is_refused_and_left(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    path = tmp_path / "s.db"
    os.mkfifo(path)
    with pytest.raises(StorageUnusable, match="not a regular file"):
        use(path)
    assert path.is_fifo()
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


async def test_torn_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    storage = SqliteStorage(path)
    await storage.open()
    await storage.close()
    path.write_bytes(path.read_bytes()[:9000])
    before = path.read_bytes()
    with pytest.raises(StorageUnusable):
        await SqliteStorage(path).open()
    assert path.read_bytes() == before


async def test_second_server_on_a_file_is_refused(tmp_path: Path) -> None:
    first = SqliteStorage(tmp_path / "s.db")
    await first.open()
    with pytest.raises(StorageUnusable, match="in use by another server"):
        await SqliteStorage(tmp_path / "s.db").open()
    await first.close()
    again = SqliteStorage(tmp_path / "s.db")
    await again.open()
    await again.close()


async def test_file_that_cannot_be_read_is_not_kept_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    await storage.close()

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.pread", fail)
        with pytest.raises(StorageUnusable, match="Input/output error"):
            await storage.open()
    await storage.open()
    await storage.close()


async def test_new_store_takes_the_place_of_what_a_crash_left_of_one(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    path.touch(0o600)
    for left in (".s.db.new", ".s.db.new-journal", ".s.db.new-wal", "s.db-wal"):
        (tmp_path / left).write_bytes(b"half")
    storage = SqliteStorage(path)
    await storage.open()
    assert path.stat().st_mode & 0o777 == 0o600
    await storage.close()
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


async def test_new_store_is_its_owners_alone_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    before = os.umask(0o022)  # what nearly everybody has
    try:
        for mode in (0o600, 0o644):
            storage = SqliteStorage(path)
            await storage.open()
            modes = {p.name: p.stat().st_mode & 0o777 for p in tmp_path.glob("s.db*")}
            assert modes == dict.fromkeys(["s.db", "s.db-wal", "s.db-shm"], mode)
            await storage.close()
            path.chmod(0o644)
    finally:
        os.umask(before)


async def test_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageUnusable, match="No such file or directory"):
        await SqliteStorage(tmp_path / "none" / "s.db").open()
    assert list(tmp_path.iterdir()) == []


async def test_clean_close_leaves_one_file(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    await storage.close()
    assert [p.name for p in tmp_path.iterdir()] == ["s.db"]


async def test_new_file_says_whose_it_is_and_which_schema(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "s.db")
    await storage.open()
    header = (tmp_path / "s.db").read_bytes()[:100]
    assert int.from_bytes(header[68:72], "big") == datafile.APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == datafile.SCHEMA_VERSION
    await storage.close()
