"""`check` and `check --repair` know groups."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lightningstore.client import GroupSpec, LightningStoreError, open_store
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


@pytest.mark.parametrize("group_id", ["g0", "g1"])  # a complete one, and an open one
async def test_damaged_group_costs_the_calls_that_name_it_and_no_other(
    tmp_path: Path, group_id: str
) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE groups SET record = x'ff' WHERE group_id = ?", [group_id])
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_consumer("trainer", unit="group", after_completion_number=0)
        for is_known in (False, True):
            if is_known:  # as a label
                (rollout,) = await store.enqueue_rollouts([{"input": 1, "group_id": group_id}])
                await store.update_rollout(rollout.rollout_id, status="cancelled")
            groups = [GroupSpec("other", 1), GroupSpec(group_id, 2, 60)]
            with pytest.raises(LightningStoreError) as failure:
                await store.enqueue_rollouts([], groups=groups)
            assert failure.value.reason == "ERROR_REASON_DATA_DAMAGED"
            assert failure.value.metadata == {"groupId": group_id}
        with pytest.raises(LightningStoreError, match=f"group '{group_id}' is damaged"):
            await store.get_group(group_id)
        assert [group.group_id async for group in store.iter_groups()] == [
            "g0" if group_id == "g1" else "g1"
        ]
        # No commit has failed: what others do goes on.
        await store.enqueue_rollouts([{"input": 1, "group_id": "other"}], groups=groups[:1])
        await store.cancel_rollouts(["r3", "r0"])
        assert (await store.get_rollout("r3")).status == "cancelled"


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
