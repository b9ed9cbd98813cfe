"""Groups on the command line: listed, shown, followed."""

from __future__ import annotations

import pytest
from lightningstore.client import AsyncLightningStore, GroupSpec

from tests.integration.test_cli_work import Shell, shell

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def test_groups_are_listed_shown_and_followed(shell: Shell) -> None:
    assert await shell.rows("groups") == []
    async with AsyncLightningStore(shell.server.address) as store:
        await store.update_resources("policy", {})
        specs = [{"input": n, "group_id": f"g{n % 3}"} for n in range(6)]
        groups = [GroupSpec(f"g{n}", 2, 600) for n in range(3)]
        await store.enqueue_rollouts(specs, groups=groups)
        (claimed,) = await store.dequeue_rollouts(1)
        assert claimed.group_id == "g0"
        await store.cancel_rollouts((await store.get_group("g0")).rollout_ids)
    first, second, third = await shell.rows("groups")
    assert first[:4] == ["g0", "complete", "2", "2"]
    assert first[8] == "1"
    assert second[:6] == ["g1", "open", "0", "2", "", ""]
    assert [row[0] for row in await shell.rows("groups", "--status", "open")] == ["g1", "g2"]
    assert await shell.rows("groups", "--limit", "2") == [first, second]
    assert await shell.rows("groups", "--limit", "0") == []
    assert "GROUP  STATUS    FINISHED  SIZE" in await shell("groups", "-o", "table")
    assert [group["group_id"] for group in await shell.json("groups")] == ["g0", "g1", "g2"]
    found = await shell.json("groups", "g0")
    assert (found["status"], found["completion_number"]) == ("complete", 1)
    assert found["statuses"] == [{"status": "cancelled", "count": 2}]
    assert len(found["rollout_ids"]) == found["member_count"] == 2
    assert (found["deadline"], found["on_deadline"]) == ("600s", "cancel_rest")
    assert found["rewards"] is None
    # A complete group does not change any more by itself: the command ends.
    assert "completion_number\t1" in await shell("groups", "g0", "--watch")
    assert "no group 'nope'" in await shell("groups", "nope", code=1)
    assert "--status filters the list" in await shell("groups", "g0", "--status", "open", code=2)
    assert third[0] == "g2"
