"""Groups of rollouts: specifications, and what a group shows of its members. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.copies import copied
from lightningstore.service.rules.errors import FieldInvalid, StoreError, quoted
from lightningstore.service.rules.ids import check_label
from lightningstore.service.rules.statuses import FINISHED
from lightningstore.service.rules.times import check_duration
from lightningstore.v1 import error_reason_pb2 as reasons
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.group_pb2 import Group
from lightningstore.v1.rollout_pb2 import (
    GROUP_DEADLINE_ACTION_CANCEL_REST,
    GROUP_DEADLINE_ACTION_UNSPECIFIED,
    GroupDeadlineAction,
    GroupSpec,
    Rollout,
)

#: Between these, sums and squares of rewards are exact enough as they are.
_SMALL, _LARGE = 1e-100, 1e100


class GroupExists(StoreError):
    """A group with this id and another specification exists."""

    reason = reasons.ERROR_REASON_GROUP_EXISTS

    def __init__(self, group_id: str) -> None:
        super().__init__(
            f"group {quoted(group_id)} exists with another size, deadline or on_deadline",
            groupId=group_id,
        )


class GroupFull(StoreError):
    """The group takes no more members."""

    reason = reasons.ERROR_REASON_GROUP_FULL

    def __init__(self, group_id: str, size: int, *, closed: bool) -> None:
        """Create an error with the size of the group, and whether it is closed."""
        cause = f"it may have {size} members"
        if closed:
            cause = "it is closed, because it was complete or its deadline has passed"
        super().__init__(
            f"group {quoted(group_id)} takes no more members: {cause}", groupId=group_id, size=size
        )


def check_spec(field: str, spec: GroupSpec, most: int) -> None:
    """Raise FieldInvalid for a specification that is invalid; `most` is the maximum size."""
    if not spec.group_id:
        raise FieldInvalid(f"{field}.group_id", "required")
    check_label(f"{field}.group_id", spec.group_id)
    if not 1 <= spec.size <= most:
        raise FieldInvalid(f"{field}.size", f"{spec.size}, must be from 1 to {most}")
    check_enum(f"{field}.on_deadline", GroupDeadlineAction, spec.on_deadline, unspecified=True)
    if spec.HasField("deadline"):
        check_duration(f"{field}.deadline", spec.deadline, positive=True)
    elif spec.on_deadline:
        raise FieldInvalid(f"{field}.on_deadline", "has no effect without a deadline")


def new_group(spec: GroupSpec) -> Group:
    """Return the record of a group, with the fields that the specification sets."""
    record = Group(group_id=spec.group_id, size=spec.size, on_deadline=spec.on_deadline)
    if spec.HasField("deadline"):
        record.deadline.CopyFrom(spec.deadline)
        if spec.on_deadline == GROUP_DEADLINE_ACTION_UNSPECIFIED:
            record.on_deadline = GROUP_DEADLINE_ACTION_CANCEL_REST
    return record


def has_begun(record: Group) -> bool:
    """Return whether the other members of a group are to be claimed whatever consumers hold back."""
    return record.HasField("first_claim_time") or record.finished_count > 0


def is_created_by(spec: GroupSpec, record: Group) -> bool:
    """Return whether a group has been created by the same specification."""
    other = new_group(spec)
    return (
        other.size == record.size
        and other.on_deadline == record.on_deadline
        and other.HasField("deadline") == record.HasField("deadline")
        and other.deadline == record.deadline
    )


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the standard deviation of finite numbers, with their count as divisor."""
    largest, count = max(map(abs, values)), len(values)
    # The sum or the squares of very large numbers are above what a float holds, the squares of very small ones are 0.
    scale = 1.0 if largest == 0 or _SMALL < largest < _LARGE else largest
    scaled = [value / scale for value in values]
    mean = math.fsum(scaled) / count
    variance = math.fsum((value - mean) ** 2 for value in scaled) / count
    # No deviation is above the largest number, but the rounding of one may be.
    return mean * scale, min(math.sqrt(variance) * scale, largest)


class Tally:
    """What a group shows of its members."""

    def __init__(self) -> None:
        self.rollout_ids: list[str] = []
        self.finished = 0
        self._statuses: Counter[int] = Counter()
        self._rewards: list[float] = []
        self._publish_numbers: list[int] = []

    def add(self, rollout: Rollout, latest: Attempt | None) -> None:
        """Count a member, with its latest attempt. Members come in enqueue order."""
        self.rollout_ids.append(rollout.rollout_id)
        self.finished += rollout.status in FINISHED
        self._statuses[rollout.status] += 1
        if latest is not None and latest.HasField("reward"):
            self._rewards.append(latest.reward)
        if latest is not None and latest.publish_number:
            self._publish_numbers.append(latest.publish_number)

    def filled(self, record: Group) -> Group:
        """Return a copy of a group's record with what it shows of its members."""
        group = copied(record)
        group.member_count, group.finished_count = len(self.rollout_ids), self.finished
        for status, count in sorted(self._statuses.items()):
            group.statuses.add(status=status, count=count)
        group.rollout_ids.extend(self.rollout_ids)
        if self._rewards:
            summary = group.rewards
            summary.count = len(self._rewards)
            summary.mean, summary.std = mean_and_deviation(self._rewards)
            summary.min, summary.max = min(self._rewards), max(self._rewards)
        group.min_publish_number = min(self._publish_numbers, default=0)
        group.max_publish_number = max(self._publish_numbers, default=0)
        return group
