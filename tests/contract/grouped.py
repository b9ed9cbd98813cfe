"""What contract tests of groups do again and again."""

from __future__ import annotations

from typing import Any

from lightningstore.client import LightningStoreError

from tests.contract.conftest import World
from tests.contract.helpers import enqueue, refused


async def create(world: World, size: int, count: int | None = None, **options: Any) -> list[str]:
    """Create group g and enqueue members, as many as its size unless told otherwise; returns their ids."""
    members = [{"input": n, "group_id": "g"} for n in range(size if count is None else count)]
    spec = {"group_id": "g", "size": size, **options}
    return [r.rollout_id for r in await world.store.enqueue_rollouts(members, groups=[spec])]


async def add(world: World, count: int, group_id: str = "g", **spec: Any) -> list[str]:
    return await enqueue(world, count, group_id=group_id, **spec)


async def shown(world: World) -> tuple[str, int, int, int]:
    """Return status, completion number, members and finished members of group g."""
    group = await world.store.get_group("g")
    return group.status.value, group.completion_number, group.member_count, group.finished_count


async def fails(
    world: World, kind: type[LightningStoreError], reason: str, *specs: Any, text: str = ""
) -> None:
    async with refused(world, kind, reason, text):
        await world.store.enqueue_rollouts([{"input": 1}], groups=specs)
