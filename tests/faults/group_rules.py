"""The rules of the model test about groups."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import precondition, rule
from lightningstore.v1 import group_pb2, rollout_pb2

from tests.faults.model import Group, Model

PICK = st.integers(0, 1 << 16)
GROUPS = st.sampled_from(["", "g0", "g1", "g2"])


class GroupRules:
    """The part of a machine that creates groups, moves rollouts between them, and compares them."""

    model: Model
    store: Any
    both: Any
    rollout: Any
    enqueued: int

    @rule(group=GROUPS, size=st.integers(1, 4), how=st.sampled_from(["", "cancels", "waits"]))
    def create_group(self, group: str, size: int, how: str) -> None:
        name = group or "g0"
        n = self.enqueued
        self.enqueued += 1
        made = Group(size, 11 + n * 0.0127 if how else None, cancels=how != "waits")
        spec = rollout_pb2.GroupSpec(group_id=name, size=size)
        if made.deadline is not None:
            spec.deadline.FromNanoseconds(round(made.deadline * 1e9))
        if how == "waits":
            spec.on_deadline = rollout_pb2.GROUP_DEADLINE_ACTION_KEEP_WAITING
        request = rollout_pb2.EnqueueRolloutsRequest(groups=[spec])
        self.both("enqueue_rollouts", request, lambda: self.model.create(name, made))

    @precondition(lambda self: self.model.rollouts)
    @rule(pick=PICK, group=GROUPS)
    def move_group(self, pick: int, group: str) -> None:
        name, rollout = self.rollout(pick)
        request = rollout_pb2.UpdateRolloutRequest(
            rollout={"rollout_id": name, "group_id": group}, update_mask={"paths": ["group_id"]}
        )
        self.both("update_rollout", request, lambda: self.model.move(rollout, group))

    async def check_groups(self) -> None:
        model = self.model
        reply = await self.store.list_groups(group_pb2.ListGroupsRequest())
        assert [record.group_id for record in reply.groups] == list(model.groups)
        for record in reply.groups:
            group, members = model.groups[record.group_id], model.members(record.group_id)
            assert record.completion_number == group.number, record
            assert record.status == 1 + (group.number > 0)
            assert (record.closed, record.deadline_passed) == (group.closed, group.passed), record
            assert record.HasField("first_claim_time") == (group.claimed is not None), record
            assert record.HasField("end_time") == (group.number > 0)
            names = [name for name, r in model.rollouts.items() if r.group == record.group_id]
            assert list(record.rollout_ids) == names
            assert record.member_count == len(members)
            assert record.finished_count == sum(r.finished for r in members)
            assert sum(each.count for each in record.statuses) == len(members)
            one = await self.store.get_group(group_pb2.GetGroupRequest(group_id=record.group_id))
            assert one.group == record
