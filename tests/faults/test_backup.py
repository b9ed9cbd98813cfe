"""Backups of a live store under load: each is a store of its own with all that was answered before it."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest
from lightningstore.client import LightningStore
from lightningstore.service.errors import StorageUnusable
from lightningstore.service.storage import tools

from tests.faults.lab import COMMAND, Lab

CLI = [sys.executable, COMMAND]


def ids(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {i for (i,) in connection.execute("SELECT rollout_id FROM rollouts")}


def test_backups_under_load_are_whole(lab: Lab, tmp_path: Path, tries) -> None:
    lab.start()
    answered: list[str] = []
    enough = threading.Event()

    def work() -> None:
        with LightningStore(lab.address) as store:
            while not enough.is_set():
                made = store.enqueue_rollouts([{"input": "x" * 1000}] * 20)
                answered.extend(r.rollout_id for r in made)
                (mine,) = store.dequeue_rollouts(1)
                store.update_attempt(mine.rollout_id, "latest", status="succeeded")

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for turn in range(tries("backups")):
            before = set(answered)
            copy = tmp_path / f"copy-{turn}.db"
            tools.backup(lab.db, copy)
            assert before <= ids(copy)
            assert tools.check(copy) == []
            copy.unlink()
    finally:
        enough.set()
        thread.join()
    assert tools.check(lab.db) == []


def test_backup_is_restored_and_served(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    copy = tmp_path / "copy.db"
    with LightningStore(lab.address) as store:
        (kept,) = store.enqueue_rollouts([{"input": 1}])
        subprocess.run([*CLI, "backup", str(copy), "--db", str(lab.db)], check=True)
        (lost,) = store.enqueue_rollouts([{"input": 2}])
    with pytest.raises(StorageUnusable, match="in use"):
        tools.restore(copy, lab.db, replace=True)
    with pytest.raises(StorageUnusable, match="in use"):
        tools.vacuum(lab.db)
    lab.kill()  # its log stays beside it, and must not find its way into the restored file
    with pytest.raises(FileExistsError):
        tools.restore(copy, lab.db)
    tools.restore(copy, lab.db, replace=True)
    lab.start()
    with LightningStore(lab.address) as store:
        assert [r.rollout_id for r in store.iter_rollouts()] == [kept.rollout_id]
        assert lost.rollout_id != kept.rollout_id
    assert lab.end() == 0
    assert tools.check(lab.db) == []


def test_vacuum_gives_space_back(lab: Lab) -> None:
    lab.start()
    assert lab.end() == 0
    with closing(sqlite3.connect(lab.db)) as connection:
        connection.execute("CREATE TABLE ballast AS SELECT zeroblob(5000000) AS data")
        connection.execute("DROP TABLE ballast")
        connection.commit()
    before, after = tools.vacuum(lab.db)
    assert after < before - 4_000_000
    lab.start()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("UPDATE meta SET value = '{}' WHERE name = 'counters'", "counters"),
        ("DELETE FROM inputs", "without an input"),
        ("UPDATE attempts SET rollout_key = 99", "without a rollout"),
    ],
)
def test_check_finds_damage_and_restore_refuses_it(
    lab: Lab, tmp_path: Path, damage: str, told: str
) -> None:
    lab.start()
    with LightningStore(lab.address) as store:
        store.start_rollout(1)
    assert lab.end() == 0
    assert tools.check(lab.db) == []
    with closing(sqlite3.connect(lab.db)) as connection:
        connection.execute(damage)
        connection.commit()
    assert told in " ".join(tools.check(lab.db))
    done = subprocess.run(
        [*CLI, "check", "--db", str(lab.db)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert told in done.stdout
    with pytest.raises(StorageUnusable, match="no good backup"):
        tools.restore(lab.db, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


def test_flipped_bits_are_found_or_do_no_harm(lab: Lab, dice, tries, tmp_path: Path) -> None:
    """One bit of the file at a time: `check` says so, or every record reads as before; nothing dies."""
    lab.start()
    with LightningStore(lab.address) as store:
        store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(200)])
    assert lab.end() == 0
    whole = lab.db.read_bytes()
    expected = ids(lab.db)
    hurt = tmp_path / "hurt.db"
    found = 0
    for _ in range(tries("flipped bits")):
        data = bytearray(whole)
        at = dice.randrange(len(data))
        data[at] ^= 1 << dice.randrange(8)
        hurt.write_bytes(data)
        try:
            if tools.check(hurt):
                found += 1
                continue
        except StorageUnusable:
            found += 1
            continue
        assert ids(hurt) == expected, f"bit {at} went unnoticed"
    print(f"{found} found")
    assert found
