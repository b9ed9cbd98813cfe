"""Backups of a live store under load: each is a store of its own with all that was answered before it."""

from __future__ import annotations

import logging
import os
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from lightningstore.client import LLM, LightningStore, LightningStoreError, open_store
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.sqlite import file as datafile
from lightningstore.service.storage.sqlite import tools

from tests.contract.helpers import batch
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


def test_full_disk_is_said_of_the_backup_that_is_written(lab: Lab, tmp_path: Path) -> None:
    lab.start()
    with LightningStore(lab.address) as store:
        store.enqueue_rollouts([{"input": "x" * 10_000}] * 100)
    target = tmp_path / "copy.db"
    lab.hurt("write full at 9 once")  # the first ones remove what a crash may have left
    done = subprocess.run(
        [*CLI, "backup", str(target), "--db", str(lab.db)],
        env={**os.environ, **lab.breaking(), "FAULT_PATH": target.name},
        check=False,
        capture_output=True,
        text=True,
    )
    assert lab.heal()
    assert done.returncode == 1
    assert f"{lab.db} cannot be copied to {target}: database or disk is full; " in done.stderr
    assert list(tmp_path.glob("*copy.db*")) == []
    tools.backup(lab.db, target)


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
        ("UPDATE meta SET value = 'x' WHERE name = 'counters'", "cannot be read"),
        ("UPDATE rollouts SET resources_id = 'other'", "disagrees with its columns"),
        ("DELETE FROM inputs", "without an input"),
        ("UPDATE attempts SET rollout_key = 99", "without a rollout"),
        ("UPDATE attempts SET last_sequence_id = 0", "have higher numbers"),
        ("UPDATE spans SET last_sequence_id = 7", "disagrees with the columns"),
        ("UPDATE spans SET contiguous = 0", "disagrees with the columns"),
        ("DELETE FROM spans", "attempts: the record disagrees"),
    ],
)
def test_check_finds_damage_and_restore_refuses_it(
    lab: Lab, tmp_path: Path, damage: str, told: str
) -> None:
    lab.start()
    with LightningStore(lab.address) as store:
        started = store.start_rollout(1)
        store.add_spans(batch(started.rollout_id, started.attempt.attempt_id, "a", "b"))
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
    with pytest.raises(StorageUnusable, match="not a usable backup"):
        tools.restore(lab.db, tmp_path / "new.db")
    assert not (tmp_path / "new.db").exists()


async def fill(path: Path) -> None:
    """Make a store with something of everything in it."""
    async with open_store(f"sqlite:///{path}") as store:
        await store.add_resources({"llm": LLM(endpoint="http://x", model="m")})
        await store.enqueue_rollouts([{"input": n, "rollout_id": f"r{n}"} for n in range(200)])
        for claimed in await store.dequeue_rollouts(40, worker_id="w"):
            names = (claimed.rollout_id, claimed.attempt.attempt_id)
            await store.add_spans(batch(*names, *["s"] * 5))
            if claimed.input % 2:
                await store.update_attempt(*names, status="succeeded")


async def told(path: Path, timeout: float = 60) -> tuple[Any, Any]:
    """Return what a store over the file answers: ids, statuses and numbers, and all the rest."""
    async with open_store(f"sqlite:///{path}", timeout=timeout) as store:
        rollouts = [r async for r in store.iter_rollouts()]
        spans = []
        for i in range(40):
            spans += [s async for s in store.query_spans(f"r{i}")]
        others = [await store.list_workers(), await store.list_resources()]
    names = [
        (r.rollout_id, r.status, r.completion_number, a and (a.attempt_id, a.status, a.span_count))
        for r in rollouts
        for a in [r.latest_attempt]
    ]
    ids = [(s.rollout_id, s.attempt_id, s.span_id, s.sequence_id) for s in spans]
    return (names, ids), [[item.message for item in kind] for kind in (rollouts, *others)]


@pytest.mark.asyncio
async def test_flipped_bits_are_found_or_change_no_id(dice, tries, tmp_path: Path) -> None:
    """One bit of the file at a time: `check` says so, or every id and status is answered as before.

    A server that opens the file nevertheless refuses it, or answers with errors of the contract or, where
    stored spans are passed on as they are, with what its client cannot read. A wrong
    answer that nothing finds can only be a changed letter in what users stored: it is counted here.
    """
    logging.getLogger("lightningstore").setLevel(
        logging.CRITICAL
    )  # the damage is reported in detail
    file, hurt = tmp_path / "whole.db", tmp_path / "hurt.db"
    await fill(file)
    whole = file.read_bytes()
    expected, content = await told(file)
    counts: Counter[str] = Counter()
    for _ in range(tries("flipped bits")):
        data = bytearray(whole)
        at = dice.randrange(len(data))
        data[at] ^= 1 << dice.randrange(8)
        hurt.write_bytes(data)
        try:
            found = bool(tools.check(hurt))
        except StorageUnusable:
            found = True
        try:
            names, rest = await told(hurt, 0.1)  # the client asks again for so long
        except (StorageUnusable, LightningStoreError, DecodeError):
            counts["refused"] += 1
        else:
            assert found or names == expected, f"bit {at} went unnoticed"
            counts["changed letter"] += not found and rest != content
        counts["found"] += found
        datafile.forget(hurt)
    print(f"{file.stat().st_size} bytes, {dict(counts)}")
    assert counts["found"] > 0
