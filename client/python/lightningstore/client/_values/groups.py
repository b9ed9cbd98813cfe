"""Groups of rollouts, and what they are created from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lightningstore.client._values import convert
from lightningstore.client._values.enums import GroupDeadlineAction, GroupStatus, RolloutStatus
from lightningstore.client._values.rollouts import ROLLOUT_STATUS
from lightningstore.client._values.text import names_fields
from lightningstore.client._values.view import View
from lightningstore.v1 import group_pb2, rollout_pb2

GROUP_STATUS = group_pb2.GroupStatus.DESCRIPTOR
DEADLINE_ACTION = rollout_pb2.GroupDeadlineAction.DESCRIPTOR


@dataclass(frozen=True)
class GroupSpec:
    """A group to create: rollouts that complete, and are trained on, together.

    Args:
        group_id: Id of the group. Rollouts with this `group_id` are its members.
        size: Number of members. The group is complete when they have finished.
        deadline: Seconds after the first claim of a member at which the group closes. None: no deadline.
        on_deadline: What happens then to members that have not finished: "cancel_rest" cancels them, and
            "keep_waiting" waits for them. None: "cancel_rest" if there is a deadline.
    """

    group_id: str
    size: int
    deadline: float | None = None
    on_deadline: GroupDeadlineAction | str | int | None = None

    @names_fields
    def to_message(self) -> rollout_pb2.GroupSpec:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            ValueError: The deadline is not finite, or `on_deadline` is unknown.
        """
        message = rollout_pb2.GroupSpec(group_id=self.group_id, size=self.size)
        if self.on_deadline is not None:
            message.on_deadline = convert.to_number(DEADLINE_ACTION, self.on_deadline)  # type: ignore[assignment]
        if self.deadline is not None:
            message.deadline.CopyFrom(convert.to_duration(self.deadline))
        return message

    @classmethod
    def of(cls, value: GroupSpec | Mapping[str, Any]) -> GroupSpec:
        """Return a spec from a mapping with the same fields; a spec is returned unchanged.

        Args:
            value: The spec or mapping.

        Returns:
            The spec.

        Raises:
            TypeError: The mapping has unknown fields, or the value is neither.
        """
        if isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(f"a group must be a GroupSpec or a mapping, not {type(value).__name__}")
        return cls(**value)


@dataclass(frozen=True)
class RewardSummary:
    """Rewards of the members of a group: those of their latest attempts.

    Args:
        count: Number of members with a reward.
        mean: Arithmetic mean.
        std: Standard deviation, with the count as divisor.
        min: The lowest.
        max: The highest.
    """

    count: int
    mean: float
    std: float
    min: float
    max: float


class Group(View[group_pb2.Group]):
    """Rollouts that complete, and are trained on, together. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("group_id", "status", "finished_count", "size")

    @property
    def group_id(self) -> str:
        """Id of the group, which is the `group_id` of its members."""
        return self.message.group_id

    @property
    def size(self) -> int:
        """Number of members with which it is full, and complete when they have finished."""
        return self.message.size

    @property
    def deadline(self) -> float | None:
        """Seconds after the first claim of a member at which it closes. None: no deadline."""
        if not self.message.HasField("deadline"):
            return None
        return convert.from_duration(self.message.deadline)

    @property
    def on_deadline(self) -> GroupDeadlineAction | None:
        """What happens at the deadline to members that have not finished. None without a deadline."""
        number = self.message.on_deadline
        return convert.from_number(GroupDeadlineAction, DEADLINE_ACTION, number) if number else None

    @property
    def status(self) -> GroupStatus:
        """Status of the group."""
        return convert.from_number(GroupStatus, GROUP_STATUS, self.message.status)

    @property
    def start_time(self) -> datetime | None:
        """Time at which it was created, in UTC."""
        return self._time("start_time")

    @property
    def first_claim_time(self) -> datetime | None:
        """Time from which the deadline counts, in UTC. None before a member was claimed."""
        return self._time("first_claim_time")

    @property
    def end_time(self) -> datetime | None:
        """Time at which it became complete, in UTC. None unless it is complete."""
        return self._time("end_time")

    @property
    def completion_number(self) -> int:
        """Position among all completions of groups, counted from 1. 0 unless it is complete."""
        return self.message.completion_number

    @property
    def closed(self) -> bool:
        """Whether it takes no more members: it was complete once, or its deadline has passed."""
        return self.message.closed

    @property
    def deadline_passed(self) -> bool:
        """Whether it was closed by its deadline."""
        return self.message.deadline_passed

    @property
    def member_count(self) -> int:
        """Number of its members."""
        return self.message.member_count

    @property
    def finished_count(self) -> int:
        """Number of its members that have finished."""
        return self.message.finished_count

    @property
    def statuses(self) -> dict[RolloutStatus, int]:
        """Number of its members by status, without statuses that none has."""
        return {
            convert.from_number(RolloutStatus, ROLLOUT_STATUS, each.status): each.count
            for each in self.message.statuses
        }

    @property
    def rewards(self) -> RewardSummary | None:
        """Rewards of its members. None if none has one."""
        if not self.message.HasField("rewards"):
            return None
        rewards = self.message.rewards
        return RewardSummary(rewards.count, rewards.mean, rewards.std, rewards.min, rewards.max)

    @property
    def min_publish_number(self) -> int:
        """Lowest publish number of the resources that its members were claimed with. 0: none is known."""
        return self.message.min_publish_number

    @property
    def max_publish_number(self) -> int:
        """Highest publish number of the resources that its members were claimed with. 0: none is known."""
        return self.message.max_publish_number

    @property
    def rollout_ids(self) -> list[str]:
        """Ids of its members, in the order in which they were enqueued."""
        return list(self.message.rollout_ids)
