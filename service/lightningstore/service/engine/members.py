"""Loads rollouts with their groups, which must be in memory before a member joins, leaves or is reopened."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.groups import sound_groups
from lightningstore.service.engine.state import Entry

#: Groups that are read at a time.
GROUPS_AT_ONCE = 1000


async def load_groups(engine: Engine, group_ids: Iterable[str]) -> None:
    """Load groups, those that exist, unless they are in memory.

    They stay there until the caller's next await, or for as long as the caller holds `state.held`. Raises
    StorageFailed while memory is loaded anew.
    """
    ids = dict.fromkeys(group_ids)
    groups = engine.live.groups
    with engine.live.state.held:
        while missing := [i for i in ids if not groups.knows(i)]:
            for start in range(0, len(missing), GROUPS_AT_ONCE):
                if start:
                    await asyncio.sleep(0)  # let others have the loop
                part = missing[start : start + GROUPS_AT_ONCE]
                rows, damaged = await sound_groups(engine.storage, part)
                engine.check_owned()
                if groups is not engine.live.groups:
                    break
                groups.install(part, rows, damaged)
            groups = engine.live.groups  # memory may have been loaded anew
    if engine.committer.failure is not None:
        raise engine.committer.failure


async def load_member(
    engine: Engine,
    rollout_id: str,
    field: str = "rollout_id",
    *,
    group_id: str = "",
    inputs: bool = False,
) -> Entry:
    """Return what `Engine.load` does, with the rollout's group, and the group with this id, in memory."""
    with engine.live.state.held:
        while True:
            entry = await engine.load(rollout_id, field, inputs=inputs)
            wanted = (entry.rollout.group_id, group_id)
            if not all(map(engine.live.groups.knows, wanted)):
                await load_groups(engine, wanted)
            elif not await _load_reopened(engine, entry):
                return entry


async def _load_reopened(engine: Engine, entry: Entry) -> bool:
    """Count the members of a rollout's group that consumers need if it is reopened; return whether it waited.

    What it counts is valid until the next await.
    """
    group_id, consumers = entry.rollout.group_id, engine.live.consumers
    group = engine.live.groups.loaded.get(group_id) if consumers.exist and group_id else None
    if group is None or not consumers.needs_members(group):
        return False
    await engine.barrier()
    members = await engine.storage.group_members(group_id)
    loaded = await engine.load_sound(members)
    if entry.rollout.group_id != group_id or not engine.live.state.holds(entry):
        return True
    consumers.know_members(group_id, loaded)
    return False


async def load_members(engine: Engine, rollout_ids: list[str]) -> list[Entry]:
    """Return what `Engine.load_sound` does, with the groups of the rollouts in memory."""
    with engine.live.state.held:
        while True:
            entries = await engine.load_sound(rollout_ids)
            wanted = {entry.rollout.group_id for entry in entries}
            if all(map(engine.live.groups.knows, wanted)):
                return entries
            await load_groups(engine, wanted)
