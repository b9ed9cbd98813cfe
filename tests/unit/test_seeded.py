"""Programs that seed Python's generator share no ids with each other."""

from __future__ import annotations

import random

import pytest
from lightningstore.client.embedded import open_store
from lightningstore.service.rules.ids import new_id

pytestmark = pytest.mark.asyncio


async def test_seeded_programs_make_different_ids() -> None:
    made = []
    for _ in range(2):
        random.seed(7)
        async with open_store("memory://") as store:
            info = await store.get_server_info()
            resources = await store.add_resources({})
            rollout = await store.enqueue_rollout(1)
            (claimed,) = await store.dequeue_rollouts(1)
            made.append(
                {
                    info.store_id,
                    resources.resources_id,
                    rollout.rollout_id,
                    claimed.latest_attempt_id,
                }
            )
    assert not made[0] & made[1]


async def test_ids_keep_their_form() -> None:
    prefix, digits = new_id("ro-", 12).split("-")
    assert (prefix, len(digits), int(digits, 16) >= 0) == ("ro", 12, True)
