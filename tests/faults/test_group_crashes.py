"""The server is killed while groups complete: their completion numbers have no gaps, and no answered one is lost."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress

import pytest
from lightningstore.client import AsyncLightningStore, GroupSpec, LightningStoreError

from tests.faults.lab import Lab

pytestmark = pytest.mark.asyncio

SIZE = 3


async def _work(store: AsyncLightningStore, name: str, answered: dict[str, int]) -> None:
    """Create groups and finish their members, one by one, until the server is gone."""
    with suppress(LightningStoreError):
        for n in range(1_000_000):
            group_id = f"{name}-{n}"
            rollouts = await store.enqueue_rollouts(
                [{"input": n, "group_id": group_id} for _ in range(SIZE)],
                groups=[GroupSpec(group_id, SIZE)],
            )
            for rollout in rollouts:
                await store.update_rollout(rollout.rollout_id, status="failed")
            answered[group_id] = (await store.get_group(group_id)).completion_number


async def test_completion_numbers_of_groups_have_no_gaps_after_kill_9(
    lab: Lab, dice: random.Random, tries
) -> None:
    answered: dict[str, int] = {}
    lab.start()
    for kill in range(tries("kills")):
        async with AsyncLightningStore(lab.address, timeout=0.5) as store:
            workers = [asyncio.create_task(_work(store, f"{kill}-{n}", answered)) for n in range(8)]
            await asyncio.sleep(dice.uniform(0.1, 0.6))
            lab.kill()
            await asyncio.gather(*workers)
        lab.start()
        async with AsyncLightningStore(lab.address, timeout=20) as store:
            shown = {group.group_id: group async for group in store.iter_groups(page_size=1000)}
            numbers = {i: group.completion_number for i, group in shown.items()}
            given = sorted(number for number in numbers.values() if number)
            assert given == list(range(1, len(given) + 1))
            assert {group_id: numbers[group_id] for group_id in answered} == answered
            for group in shown.values():
                assert (group.finished_count == SIZE) == (group.completion_number > 0)
                assert group.member_count == len(group.rollout_ids) == SIZE
            async with store.watch_groups(0) as stream:
                watched = [(await anext(stream)).completion_number for _ in given]
            assert watched == given
    print(f"{len(answered)} completions answered")
    assert lab.end() == 0
    assert answered
