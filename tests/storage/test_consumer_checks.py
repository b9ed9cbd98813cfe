"""`check` and `check --repair` know consumers, and a pull leaves out what is damaged."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Literal

import pytest
from lightningstore.client import open_store
from lightningstore.service.storage.sqlite import tools
from lightningstore.service.storage.sqlite.repair import repair

pytestmark = pytest.mark.asyncio


async def fill(path: Path) -> None:
    """Write a file with a consumer that has one item delivered and two that wait."""
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_consumer("trainer", after_completion_number=0)
        specs = [{"input": n, "rollout_id": f"r{n}"} for n in range(3)]
        await store.enqueue_rollouts(specs)
        await store.cancel_rollouts(["r0", "r1", "r2"])
        await store.pull_finished("trainer")
    assert tools.check(path) == []


def change(path: Path, text: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute(text).rowcount == 1


@pytest.mark.parametrize(
    ("damage", "found", "done", "left"),
    [
        ("UPDATE consumers SET record = x'ff'", "consumers: the record", "1 consumers that", []),
        ("DELETE FROM consumers", "1 deliveries without", "1 deliveries without", []),
    ],
)
async def test_damage_is_found_and_repaired(
    tmp_path: Path, damage: str, found: str, done: str, left: list[int]
) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    change(path, damage)
    assert any(found in line for line in tools.check(path))
    async with open_store(f"sqlite:///{path}") as store:  # and the store opens
        assert [c.delivered_count for c in await store.list_consumers()] == left
    assert any(done in line for line in repair(path))
    assert tools.check(path) == []
    async with open_store(f"sqlite:///{path}") as store:
        assert [c.delivered_count for c in await store.list_consumers()] == left
        if not left:
            await store.create_consumer("trainer", unit="group")


@pytest.mark.parametrize("unit", ["rollout", "group"])
@pytest.mark.parametrize(
    ("damage", "finding"),
    [
        ("UPDATE deliveries SET record = x'ff'", "deliveries: the record"),
        ("UPDATE deliveries SET gone = 'x'", "deliveries.gone"),
        ("UPDATE deliveries SET number = 9, record = x'ff'", "deliveries: the record"),
    ],
)
async def test_repaired_deliveries_come_again(
    tmp_path: Path, damage: str, finding: str, unit: Literal["rollout", "group"]
) -> None:
    path = tmp_path / "s.db"
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_consumer("trainer", unit=unit, after_completion_number=0)
        specs = [{"input": 1, "rollout_id": "r0", "group_id": "g0"}]
        await store.enqueue_rollouts(specs, groups=[{"group_id": "g0", "size": 1}])
        await store.cancel_rollouts(["r0"])
        await store.pull_finished("trainer")
    change(path, damage)
    assert any(finding in line for line in tools.check(path))
    is_lost = "number = 9" in damage  # of an item that there is not
    done = "were removed" if is_lost else "were restored"
    assert any(f"1 deliveries that could not be read {done}" in line for line in repair(path))
    assert tools.check(path) == []
    async with open_store(f"sqlite:///{path}") as store:
        deliveries = await store.pull_finished("trainer")
        found = [(delivery.item_id, delivery.delivery_count) for delivery in deliveries]
        item_id = "r0" if unit == "rollout" else "g0"
        assert found == ([] if is_lost else [(item_id, 2)])


async def test_damaged_rollouts_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    await fill(path)
    change(path, "UPDATE rollouts SET record = x'ff' WHERE rollout_id = 'r0'")
    change(path, "UPDATE rollouts SET record = x'ff' WHERE rollout_id = 'r1'")
    async with open_store(f"sqlite:///{path}") as store:
        (delivery,) = await store.list_deliveries("trainer")
        await store.acknowledge("trainer", delivery, "released")
        assert [d.item_id for d in await store.pull_finished("trainer", 9)] == ["r2"]
        found = await store.get_consumer("trainer")
        assert (found.backlog_count, found.redelivery_count, found.delivered_count) == (0, 0, 1)
