"""Kills a process at each write and sync of making a store, or of migrating one. Run with the shim in place.

`python -m tests.faults.steps make|migrate PATH`. Each step is done by a fork of this process, so that a kill
costs no start of an interpreter. Prints how many steps there were; fails where a store does not survive one.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from lightningstore.client import open_store
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage import sql_files
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools

REAL = sql_files.migrations("lightningstore.service.storage.sqlite")
#: What a next version might do: a table, a column that is filled, an index.
MADE_UP = """
CREATE TABLE notes (rollout_key INTEGER PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO notes SELECT key, 'r' || key FROM rollouts;
ALTER TABLE inputs ADD COLUMN size INTEGER NOT NULL DEFAULT 0;
UPDATE inputs SET size = length(input_json);
CREATE INDEX inputs_by_size ON inputs (size);
"""
ROLLOUTS = 40


def in_fork(work: Callable[[], None]) -> int:
    """Do it in a process of its own; returns the exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


async def opened(path: Path) -> list[str]:
    async with open_store(f"sqlite:///{path}") as store:
        return [r.rollout_id async for r in store.iter_rollouts()]


def new_version() -> None:
    sql_files.migrations = lambda package: [*REAL, (len(REAL) + 1, MADE_UP)]
    datafile.SCHEMA_VERSION = len(REAL) + 1


def open_new(path: Path) -> None:
    """Open the file as a server of the next version does, and see that it is migrated, all of it."""
    new_version()
    assert len(asyncio.run(opened(path))) == ROLLOUTS
    assert tools.check(path) == []
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(REAL) + 1,)
        assert connection.execute("SELECT count(*) FROM notes").fetchone() == (ROLLOUTS,)
        sizes = "SELECT count(*) FROM inputs WHERE size = length(input_json)"
        assert connection.execute(sizes).fetchone() == (ROLLOUTS,)


def open_old(path: Path) -> None:
    """Open the file as a server of this version does: all is there, or it is refused as too new."""
    try:
        assert len(asyncio.run(opened(path))) == ROLLOUTS
    except StorageUnusable as error:
        assert "newer version" in str(error), error
    else:
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA user_version").fetchone() == (len(REAL),)


def open_empty(path: Path) -> None:
    assert asyncio.run(opened(path)) == []
    assert tools.check(path) == []


def copy(path: Path, to: Path) -> Path:
    datafile.forget(to)
    for ending in ("", "-wal", "-journal"):
        if Path(f"{path}{ending}").exists():
            shutil.copy(f"{path}{ending}", f"{to}{ending}")
    return to


def step(what: str, whole: Path, path: Path, number: int) -> bool:
    """Kill at the call of this number, and look at what is left; returns whether there was such a call."""
    control = Path(os.environ["FAULT_CONTROL"])
    datafile.forget(path)
    if what == "migrate":
        copy(whole, path)
    control.write_text(f"write sync kill at {number}")
    killed = in_fork(lambda: _begin(what, path))
    control.unlink()
    assert killed in (0, -signal.SIGKILL), killed
    if what == "make":
        assert in_fork(lambda: open_empty(path)) == 0, f"made, killed at call {number}"
    else:
        old = copy(path, path.with_name("old.db"))
        assert in_fork(lambda: open_old(old)) == 0, f"old version, killed at call {number}"
        assert in_fork(lambda: open_new(path)) == 0, f"new version, killed at call {number}"
    return killed != 0


def _begin(what: str, path: Path) -> None:
    if what == "migrate":
        new_version()
    asyncio.run(opened(path))


def fill(path: Path) -> None:
    async def main() -> None:
        async with open_store(f"sqlite:///{path}") as store:
            await store.enqueue_rollouts([{"input": "x" * 200}] * ROLLOUTS)

    asyncio.run(main())


def run(what: str, path: Path, stride: int) -> None:
    whole = path.with_name("whole.db")
    gc.freeze()  # else every fork copies what it collects
    assert in_fork(lambda: fill(whole)) == 0
    number = kills = 1
    while step(what, whole, path, number):
        number += stride
        kills += 1
    print(kills - 1)


if __name__ == "__main__":
    run(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
