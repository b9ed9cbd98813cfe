"""Creates the groups of an EnqueueRollouts, and checks that groups have room for its rollouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.groups import Reading, prepared
from lightningstore.service.engine.members import load_groups
from lightningstore.service.engine.state import Entry, GroupState
from lightningstore.service.operations.bulk import uncollected
from lightningstore.service.rules import groups as rules
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.rules.times import stamp
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, GroupSpec

#: The rollouts that have the ids of groups to create already, by id of the group.
Members = Mapping[str, Sequence[Entry]]


class Grouping:
    """The groups of EnqueueRollouts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    def check_specs(self, request: EnqueueRolloutsRequest) -> None:
        """Check what does not depend on the store. Raises FieldInvalid, BatchTooLarge."""
        self._engine.check_batch("groups", len(request.groups))
        for i, spec in enumerate(request.groups):
            rules.check_spec(f"groups[{i}]", spec, self._engine.limits.batch_items)

    async def prepare(self, request: EnqueueRolloutsRequest) -> dict[str, GroupState]:
        """Return the groups of a request by id, ready to be created. Thousands are prepared in slices."""
        made: dict[str, GroupState] = {}
        turn = Turn()
        for spec in request.groups:
            made.setdefault(spec.group_id, prepared(spec))
            if turn.over():
                await turn.next()
        return made

    async def load(
        self, request: EnqueueRolloutsRequest, new: Sequence[Entry], reading: Reading
    ) -> Members:
        """Load the groups that the request creates or adds members to; return members of new groups.

        They stay in memory while the caller holds `state.held`, and current until its next await. Raises DataDamaged
        if a group to create is stored and cannot be read.
        """
        groups = self._live.groups
        if not request.groups and not groups.exist:
            return {}  # the ids of groups are labels
        specs = {spec.group_id: spec for spec in request.groups}
        reading.labels.update(specs)
        await load_groups(self._engine, {*specs, *(entry.rollout.group_id for entry in new)})
        self._live.groups.check_sound(specs)
        members: dict[str, list[Entry]] = {}
        while missing := [
            group_id
            for group_id in specs
            if group_id not in groups.loaded
            and (group_id not in members or group_id in reading.outdated)
        ]:
            reading.outdated.difference_update(missing)
            await self._engine.barrier()
            members.update(await self._labelled({i: specs[i] for i in missing}))
        return members

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

    def check(
        self, request: EnqueueRolloutsRequest, new: Sequence[Entry], members: Members
    ) -> None:
        """Raise GroupExists or GroupFull if a group has another specification or no room."""
        groups = self._live.groups
        specs: dict[str, GroupSpec] = {}
        for spec in request.groups:
            group, earlier = groups.loaded.get(spec.group_id), specs.get(spec.group_id)
            if group is not None:
                if not rules.is_created_by(spec, group.record):
                    raise rules.GroupExists(spec.group_id)
            elif earlier is None:
                specs[spec.group_id] = spec
            elif not rules.is_created_by(spec, rules.new_group(earlier)):
                raise rules.GroupExists(spec.group_id)
        if not specs and not groups.exist:
            return
        added = Counter(entry.rollout.group_id for entry in new)
        groups.check_room(added)
        for group_id, spec in specs.items():
            if added[group_id] + len(members[group_id]) > spec.size:
                raise rules.GroupFull(group_id, spec.size, closed=False)

    def create(self, made: Mapping[str, GroupState], members: Members) -> None:
        """Create those of the prepared groups that do not exist, which `check` has found possible."""
        groups, now = self._live.groups, stamp(self._engine.clock.wall_ns())
        with uncollected(len(made)):
            for group_id, group in made.items():
                if group_id not in groups.loaded:
                    groups.create(group, members[group_id], now)
