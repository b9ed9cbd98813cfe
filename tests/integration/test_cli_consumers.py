"""Consumers on the command line."""

from __future__ import annotations

import pytest
from lightningstore.client import AsyncLightningStore

from tests.integration.test_cli_work import Shell, shell

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def test_consumers_on_the_command_line(shell: Shell) -> None:
    assert await shell.rows("consumers") == []
    made = await shell.rows(
        *("consumers", "create", "trainer", "--after", "0", "--max-lag", "4"),
        *("--max-outstanding", "9", "--ack-deadline", "30s", "--status", "cancelled"),
    )
    assert made == [["trainer", "created"]]
    async with AsyncLightningStore(shell.server.address) as store:
        ids = [r.rollout_id for r in await store.enqueue_rollouts([{"input": n} for n in range(3)])]
        await store.cancel_rollouts(ids)
        first, second = await store.pull_finished("trainer", 2)
        await store.acknowledge("trainer", second)
    (row,) = await shell.rows("consumers")
    assert [*row[:8], row[9]] == ["trainer", "rollout", "1", "2", "9", "1", "0", "0", "1"]
    found = await shell.json("consumers", "get", "trainer")
    assert (found["max_lag"], found["ack_deadline"], found["consumed_count"]) == (4, "30s", 1)
    assert found["filter"]["statuses"] == ["cancelled"]
    listed = await shell.rows("consumers", "deliveries", "trainer")
    assert [row[:3] for row in listed] == [[first.delivery_id, ids[0], "delivered"]]
    assert await shell.rows("consumers", "deliveries", "trainer", "--state", "set_aside") == []
    released = await shell.rows(
        *("consumers", "acknowledge", "trainer", first.delivery_id, "--note", "again")
    )
    assert released == [[first.delivery_id, "released"]]
    (row,) = await shell.rows("consumers", "deliveries", "trainer", "--limit", "1")
    assert (row[2], row[-1]) == ("redelivery", "again")
    await shell.rows("consumers", "update", "trainer", "--max-lag", "none")
    assert (await shell.json("consumers", "get", "trainer"))["max_lag"] is None
    assert "nothing to change" in await shell("consumers", "update", "trainer", code=2)
    assert await shell.rows("consumers", "delete", "trainer") == [["trainer", "deleted"]]
    assert "no consumer 'trainer'" in await shell("consumers", "get", "trainer", code=1)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--max-lag", "99999999999999999999"),
        ("--max-outstanding", "-5"),
        ("--max-deliveries", "3000000000"),
        ("--after", "99999999999999999999"),
        ("--ack-deadline", "1e300"),
    ],
)
async def test_numbers_that_no_field_holds(shell: Shell, option: str, value: str) -> None:
    assert option in await shell("consumers", "create", "trainer", option, value, code=2)
