"""`check` and `check --repair` know groups."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lightningstore.client import GroupSpec, open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.repair import repair

pytestmark = pytest.mark.asyncio


async def fill(path: Path) -> None:
    async with open_store(f"sqlite:///{path}") as store:
        specs = [{"input": n, "group_id": f"g{n % 2}", "rollout_id": f"r{n}"} for n in range(4)]
        await store.enqueue_rollouts(specs, groups=[GroupSpec("g0", 2), GroupSpec("g1", 2, 60)])
        await store.cancel_rollouts(["r0", "r2", "r1"])
    assert tools.check(path) == []


@pytest.mark.parametrize(
    ("damage", "found", "done"),
    [
        ("UPDATE groups SET status = 1 WHERE group_id = 'g0'", "groups: the record", "1 groups"),
        (
            "UPDATE groups SET record = x'ff' WHERE group_id = 'g0'",
            "groups: the record",
            "1 groups",
        ),
        ("UPDATE rollouts SET group_id = 'g1' WHERE rollout_id = 'r0'", "groups: the record", ""),
        ("UPDATE groups SET deadline_ns = 'x'", "groups.deadline_ns", "2 groups"),
        ("UPDATE meta SET value = '{}' WHERE name = 'counters'", "group_key: 2 in rows", ""),
    ],
)
async def test_damaged_groups_are_found_and_repaired(
    tmp_path: Path, damage: str, found: str, done: str
) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(damage)
    assert any(line.startswith(found) for line in tools.check(path))
    assert any(line.startswith(done) for line in repair(path))
    assert tools.check(path) == []
    async with open_store(f"sqlite:///{path}") as store:
        await store.cancel_rollouts(["r3"])
        group = await store.get_group("g1")
        assert (group.status, group.completion_number) == ("complete", 2)


async def test_group_whose_last_unfinished_member_was_lost_completes(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with open_store(f"sqlite:///{path}") as store:
        specs = [{"input": n, "group_id": "g", "rollout_id": f"r{n}"} for n in range(2)]
        await store.enqueue_rollouts(specs, groups=[GroupSpec("g", 2)])
        await store.cancel_rollouts(["r0"])
        await store.update_rollout("r1", status="succeeded")
        await store.start_attempt("r1")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE rollouts SET record = x'ff' WHERE rollout_id = 'r1'")
    repair(path)
    assert tools.check(path) == []
    async with open_store(f"sqlite:///{path}") as store:
        await store.enqueue_rollout(1)
        group = await store.get_group("g")
        assert (group.status, group.member_count, group.completion_number) == ("complete", 1, 2)
