"""Backup, restore, check and vacuum of files that no server has open: what is refused, and what is kept."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import open_store
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.sqlite import tools

from tests.integration.process import COMMAND

pytestmark = pytest.mark.asyncio

COUNT = 50


@pytest_asyncio.fixture
async def folder(tmp_path: Path) -> AsyncIterator[Path]:
    """A folder with `whole.db`, and the same store as a killed server leaves it: all is in the log."""
    async with open_store(f"sqlite:///{tmp_path}/whole.db") as store:
        await store.enqueue_rollouts([{"input": n} for n in range(COUNT)])
        for ending in ("", "-wal"):
            shutil.copy(tmp_path / f"whole.db{ending}", tmp_path / f"killed.db{ending}")
    before = os.umask(0o022)  # what nearly everybody has
    yield tmp_path
    os.umask(before)


def rollouts(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("SELECT count(*) FROM rollouts").fetchone()[0]


def files(folder: Path) -> dict[str, bytes]:
    """Return what is in a folder, but for the memory that readers of a log share."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.endswith("-shm")}


@pytest.mark.parametrize(
    "use",
    [
        tools.check,
        tools.vacuum,
        lambda path: tools.backup(path, path.with_name("copy.db")),
        lambda path: tools.restore(path, path.with_name("new.db")),
    ],
    ids=["check", "vacuum", "backup", "restore"],
)
async def test_file_that_is_missing_is_named_and_nothing_made(
    tmp_path: Path, use: Callable[[Path], object]
) -> None:
    with pytest.raises(StorageUnusable, match=r"typo\.db: No such file"):
        use(tmp_path / "typo.db")
    assert list(tmp_path.iterdir()) == []


async def test_log_of_a_killed_server_is_restored_with_its_file(folder: Path) -> None:
    tools.restore(folder / "killed.db", folder / "new.db")
    assert rollouts(folder / "new.db") == COUNT
    assert tools.check(folder / "new.db") == []


@pytest.mark.parametrize("link", [None, "symlink_to", "hardlink_to"])
async def test_store_is_not_restored_from_itself(folder: Path, link: str | None) -> None:
    store = folder / "whole.db"
    source = folder / "link.db" if link else store
    if link:
        getattr(source, link)(store)
    before = store.read_bytes()
    with pytest.raises(StorageUnusable, match="is the store itself"):
        tools.restore(source, store, replace=True)
    assert store.read_bytes() == before
    assert rollouts(store) == COUNT


@pytest.mark.parametrize(
    "content", [b"", b"garbage" * 1000, None], ids=["empty", "garbage", "torn"]
)
async def test_backup_takes_the_place_of_a_file_that_cannot_be_read(
    folder: Path, content: bytes | None
) -> None:
    broken = folder / "broken.db"
    broken.write_bytes((folder / "whole.db").read_bytes()[:9000] if content is None else content)
    tools.restore(folder / "whole.db", broken, replace=True)
    assert rollouts(broken) == COUNT


async def test_restore_that_fails_costs_the_old_store_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools.check(folder / "whole.db")  # which leaves an empty log
    before = files(folder)

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(StorageUnusable, match=r"killed\.db: Input/output error"):
            tools.restore(folder / "whole.db", folder / "killed.db", replace=True)
    assert files(folder) == before
    assert rollouts(folder / "killed.db") == COUNT


@pytest.mark.parametrize("place", ["none", "killed.db"], ids=["missing", "no folder"])
async def test_backup_that_cannot_be_written_names_its_target(folder: Path, place: str) -> None:
    target = folder / place / "copy.db"
    before = files(folder)
    with pytest.raises(StorageUnusable, match="cannot be copied to") as caught:
        tools.backup(folder / "whole.db", target)
    assert f"to {target}: " in str(caught.value)
    assert f"{target.parent} must be a writable folder" in str(caught.value)
    assert before.items() <= files(folder).items()


#: Runs a command as root is bound by modes too: prctl(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE). Others are anyway.
BOUND = (
    "import ctypes, os, sys;"
    "ctypes.CDLL(None).prctl(24, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
)


async def cli(*arguments: object) -> str:
    """Return what a command says, its errors too."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BOUND, COMMAND, *map(str, arguments)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    return (await process.communicate())[0].decode()


def media(folder: Path, name: str, *endings: str) -> Path:
    """Return a copy of a store, with what is beside it, where nothing can be written."""
    copy = folder / "media" / "copy.db"
    copy.parent.mkdir()
    for ending in ("", *endings):
        shutil.copy(folder / f"{name}{ending}", f"{copy}{ending}")
    copy.parent.chmod(0o500)
    return copy


@pytest.mark.parametrize("endings", [[], ["-wal"], ["-wal", "-shm"]], ids=len)
async def test_backup_is_used_where_nothing_can_be_written(
    folder: Path, endings: list[str]
) -> None:
    for ending in endings:
        (folder / f"whole.db{ending}").touch()
    copy = media(folder, "whole.db", *endings)
    assert await cli("check", "--db", copy) == "ok\n"
    await cli("restore", copy, "--db", folder / "new.db")
    await cli("backup", folder / "again.db", "--db", copy)
    assert (rollouts(folder / "new.db"), rollouts(folder / "again.db")) == (COUNT, COUNT)


async def test_log_that_cannot_be_read_where_it_lies_is_not_left_out(folder: Path) -> None:
    copy = media(folder, "killed.db", "-wal")
    told = await cli("restore", copy, "--db", folder / "new.db")
    assert f"{copy} has a log" in told
    assert "copy both files to one" in told
    assert not (folder / "new.db").exists()


async def test_file_that_is_written_to_while_it_is_read_without_locks_is_not_trusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder / "whole.db"
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(StorageUnusable, match="written to meanwhile"):
        tools.backup(store, folder / "copy.db", lambda *_: os.utime(store))
    assert not (folder / "copy.db").exists()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644])
async def test_copy_is_readable_to_no_more_than_the_file_it_is_of(folder: Path, mode: int) -> None:
    store, copy, new, old = (folder / name for name in ("whole.db", "copy.db", "new.db", "old.db"))
    store.chmod(mode)
    tools.backup(store, copy)
    tools.restore(copy, new)
    assert [path.stat().st_mode & 0o777 for path in (copy, new)] == [mode, mode]
    old.touch(0o600)
    tools.restore(copy, old, replace=True)
    assert old.stat().st_mode & 0o777 == 0o600
    copy.chmod(
        0o400
    )  # as media that cannot be written say it: the store is to be written nevertheless
    tools.restore(copy, new, replace=True)
    assert new.stat().st_mode & 0o777 == 0o600


async def guard(pid: int, log: Path, draft: Path) -> asyncio.subprocess.Process:
    """Start what looks after a backup, with half a second of patience."""
    module = "lightningstore.service.storage.sqlite.guardian"
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, str(pid), str(log), str(draft), "0.5"),
        stdin=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def test_backup_that_is_stopped_while_the_log_grows_is_ended(tmp_path: Path) -> None:
    log, draft = tmp_path / "s.db-wal", tmp_path / ".copy.db.1"
    draft.touch()
    log.touch()
    backup = await asyncio.create_subprocess_exec("sleep", "600")
    watching = await guard(backup.pid, log, draft)
    backup.send_signal(signal.SIGSTOP)
    os.truncate(log, 200 << 20)
    assert await backup.wait() == -signal.SIGKILL
    _, told = await watching.communicate()
    assert "log" in told.decode()
    assert "grew to 200 MiB" in told.decode()
    assert not draft.exists()


async def test_backup_that_ends_ends_what_looks_after_it(tmp_path: Path) -> None:
    watching = await guard(os.getpid(), tmp_path / "s.db-wal", tmp_path / "draft")
    assert watching.stdin is not None
    watching.stdin.write(b"...")
    watching.stdin.close()
    assert await watching.wait() == 0


async def test_command_makes_a_backup_under_guard(folder: Path) -> None:
    told = await cli("backup", folder / "copy.db", "--db", folder / "whole.db")
    assert "copy.db" in told
    assert rollouts(folder / "copy.db") == COUNT
