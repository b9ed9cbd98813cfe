"""Creates the groups of an EnqueueRollouts, and checks that groups have room for its rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import chain
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.groups import Reading
from lightningstore.service.engine.members import load_groups
from lightningstore.service.engine.state import Entry, GroupState
from lightningstore.service.operations.bulk import uncollected
from lightningstore.service.rules import groups as rules
from lightningstore.service.rules.rows import GroupRow, RolloutQuery
from lightningstore.v1.group_pb2 import GROUP_STATUS_OPEN, Group
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, GroupSpec

#: Rollouts by the id of their group, which may be a plain label.
Members = Mapping[str, Sequence[Entry]]


class Made(NamedTuple):
    """A group that is ready to be created, with the new rollouts of the request as its members."""

    spec: GroupSpec
    state: GroupState
    #: Its record as it is stored.
    stored: Group


class Grouping:
    """The groups of EnqueueRollouts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def prepare(
        self, request: EnqueueRolloutsRequest, new: Members, now: Timestamp
    ) -> dict[str, Made]:
        """Check the groups of a request and return them by id, ready to be created.

        Thousands are prepared in slices. Raises FieldInvalid, BatchTooLarge, GroupExists.
        """
        self._engine.check_batch("groups", len(request.groups))
        made: dict[str, Made] = {}
        turn = Turn()
        for i, spec in enumerate(request.groups):
            rules.check_spec(f"groups[{i}]", spec, self._engine.limits.batch_items)
            earlier = made.get(spec.group_id)
            if earlier is None:
                made[spec.group_id] = make(spec, new.get(spec.group_id, ()), now)
            elif not rules.is_created_by(spec, earlier.stored):
                raise rules.GroupExists(spec.group_id)
            if turn.over():
                await turn.next()
        return made

    async def load(self, made: Mapping[str, Made], new: Members, reading: Reading) -> Members:
        """Load the groups that a request creates or adds members to; return stored rollouts of new groups.

        They stay in memory while the caller holds `state.held`, and current until its next await. Raises DataDamaged
        if a group to create is stored and cannot be read.
        """
        groups = self._live.groups
        reading.labels.update(made)
        await load_groups(self._engine, {*made, *new})
        self._live.groups.check_sound(made)
        members: dict[str, list[Entry]] = {}
        while missing := [
            group_id
            for group_id in made
            if group_id not in groups.loaded
            and (group_id not in members or group_id in reading.outdated)
        ]:
            reading.outdated.difference_update(missing)
            await self._engine.barrier()
            members.update(await self._labelled({i: made[i].spec for i in missing}))
        return {group_id: entries for group_id, entries in members.items() if entries}

    async def _labelled(self, specs: Mapping[str, GroupSpec]) -> dict[str, list[Entry]]:
        """Return the rollouts that have these labels. Of one that has too many, some are left out."""
        query = RolloutQuery(
            group_ids=frozenset(specs),
            limit=sum(spec.size for spec in specs.values()) + 1,
            inputs=False,
        )
        ids = [
            loaded.row.rollout.rollout_id
            async for loaded in self._engine.storage.scan_rollouts(query)
        ]
        found: dict[str, list[Entry]] = {group_id: [] for group_id in specs}
        for entry in await self._engine.load_many(ids):
            if entry.rollout.group_id in found:  # else it has got another one meanwhile
                found[entry.rollout.group_id].append(entry)
        return found

    def check(self, made: Mapping[str, Made], new: Members, members: Members) -> None:
        """Raise GroupExists or GroupFull if a group has another specification or no room."""
        groups = self._live.groups
        known = groups.loaded
        for group_id in [group_id for group_id in made if group_id in known]:
            if not rules.is_created_by(made[group_id].spec, known[group_id].record):
                raise rules.GroupExists(group_id)
        if groups.exist:
            groups.check_room({group_id: len(entries) for group_id, entries in new.items()})
        for group_id in chain(new, members):
            if group_id in made and group_id not in known:
                count = len(new.get(group_id, ())) + len(members.get(group_id, ()))
                if count > made[group_id].spec.size:
                    raise rules.GroupFull(group_id, made[group_id].spec.size, closed=False)

    def create(self, made: Mapping[str, Made], members: Members) -> set[str]:
        """Create those of the prepared groups that do not exist, which `check` has found possible; return their ids."""
        groups = self._live.groups
        created: set[str] = set()
        with uncollected(len(made)):
            for group_id, (_, state, stored) in made.items():
                if group_id not in groups.loaded:
                    groups.create(state, stored, members.get(group_id, ()))
                    created.add(group_id)
        return created

    def join(self, new: Members, created: AbstractSet[str]) -> None:
        """Add new rollouts to their groups, except to those that were created with them."""
        groups = self._live.groups
        if groups.is_used:
            for group_id, entries in new.items():
                if group_id not in created:
                    groups.join_new(group_id, entries)


def make(spec: GroupSpec, new: Sequence[Entry], now: Timestamp) -> Made:
    """Return a group that is not created yet, with these new rollouts."""
    stored = rules.new_group(spec)
    stored.status = GROUP_STATUS_OPEN
    stored.start_time.CopyFrom(now)
    stored.member_count = len(new)
    state = GroupState(GroupRow(0, 0, stored))
    state.unfinished = dict.fromkeys(new)
    return Made(spec, state, stored)
