"""Series on the command line."""

from __future__ import annotations

import pytest
from lightningstore.client import AsyncLightningStore

from tests.integration.test_cli_work import Shell, shell

__all__ = ["shell"]  # the fixture

pytestmark = pytest.mark.asyncio


async def test_series_are_shown_by_number_time_and_version(shell: Shell) -> None:
    assert await shell.rows("series") == []
    async with AsyncLightningStore(shell.server.address) as store:
        for number in range(1, 5):
            await store.add_resources({"prompt": f"version {number}"})
            rollout = await store.start_rollout(number, mode="train" if number > 1 else "val")
            await store.update_attempt(
                rollout.rollout_id,
                "latest",
                status="succeeded",
                reward=number / 4,
                scores={"style": -number},
            )
    rows = await shell.rows("series", "--buckets", "2")
    assert rows[0] == ["1", "2", "2", "0.25", "0.25", "0.5", "0.375"]
    assert [row[0] for row in rows] == ["1", "3"]
    assert [row[6] for row in await shell.rows("series", "scores.style")] == [
        *("-1.0", "-2.0", "-3.0", "-4.0")
    ]
    rows = await shell.rows("series", "lag", "--by", "publish_number", "--from", "2", "--to", "3")
    assert [row[:3] + row[6:] for row in rows] == [["2", "2", "1", "0.0"], ["3", "3", "1", "0.0"]]
    (row,) = await shell.rows("series", "--buckets", "1", "--mode", "train", "--max-reward", "0.8")
    assert row[2] == "2"
    (row,) = await shell.rows("series", "--by", "completion_time", "--buckets", "1", "--from", "1h")
    assert row[2] == "4"
    assert await shell.rows("series", "--by", "completion_time", "--to", "1h") == []
    table = (await shell("series", "-o", "table")).splitlines()
    assert table[0].split() == ["FROM", "TO", "COUNT", "P10", "P50", "P90", "MEAN"]
    assert table[1].endswith("0.25       " + "\u2588" * 6)
    assert table[4].endswith("1          " + "\u2588" * 24)
    found = await shell.json("series", "--buckets", "1")
    assert (found[0]["count"], found[0]["mean"], found[0]["start_time"]) == (4, 0.625, None)
    assert "must be reward, duration" in await shell("series", "speed", code=2)
    assert "--buckets" in await shell("series", "--buckets", "0", code=2)
    assert "start_time" in await shell("series", "--from", "1h", code=1)
