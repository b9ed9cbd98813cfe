"""Series of finished rollouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TypedDict

from lightningstore.client._values.enums import RolloutMode, RolloutStatus
from lightningstore.client._values.view import View
from lightningstore.v1 import series_pb2

SERIES_MEASURE = series_pb2.SeriesMeasure.DESCRIPTOR
SERIES_AXIS = series_pb2.SeriesAxis.DESCRIPTOR


class RolloutFilters(TypedDict, total=False):
    """Filters of rollouts, as `list_rollouts` has them. Empty ones are ignored.

    Attributes:
        statuses: Only rollouts with one of these statuses.
        rollout_ids: Only rollouts with one of these ids.
        rollout_id_contains: Only rollouts whose id contains this text.
        modes: Only rollouts with one of these modes; None stands for rollouts without a mode.
        group_ids: Only rollouts of these groups.
        queues: Only rollouts of these task queues; "" is the default queue.
        labels: Only rollouts that have all of these labels with these values.
        filter_logic: How the filters are combined: "and" or "or".
        min_reward: Only rollouts whose latest attempt has at least this reward.
        max_reward: Only rollouts whose latest attempt has at most this reward.
    """

    statuses: Iterable[RolloutStatus | str | int]
    rollout_ids: Iterable[str]
    rollout_id_contains: str
    modes: Iterable[RolloutMode | str | int | None]
    group_ids: Iterable[str]
    queues: Iterable[str]
    labels: Mapping[str, str]
    filter_logic: str | int
    min_reward: float | None
    max_reward: float | None


class SeriesBucket(View[series_pb2.SeriesBucket]):
    """The rollouts of one part of a series. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("index", "count", "mean")

    @property
    def index(self) -> int:
        """Position of the bucket in the range, from 0."""
        return self.message.index

    @property
    def start_time(self) -> datetime | None:
        """Start of the bucket, in UTC. None unless the axis is the completion time."""
        return self._time("start_time")

    @property
    def end_time(self) -> datetime | None:
        """End of the bucket, which is not part of it, in UTC. None unless the axis is the completion time."""
        return self._time("end_time")

    @property
    def first_number(self) -> int:
        """First number of the bucket. 0 if the axis is the completion time."""
        return self.message.first_number

    @property
    def last_number(self) -> int:
        """Last number of the bucket. 0 if the axis is the completion time."""
        return self.message.last_number

    @property
    def count(self) -> int:
        """Number of rollouts, at least 1."""
        return self.message.count

    @property
    def mean(self) -> float:
        """Arithmetic mean."""
        return self.message.mean

    @property
    def min(self) -> float:
        """Lowest value."""
        return self.message.min

    @property
    def max(self) -> float:
        """Highest value."""
        return self.message.max

    @property
    def p10(self) -> float:
        """10th percentile, which is one of the values."""
        return self.message.p10

    @property
    def p50(self) -> float:
        """Median, which is one of the values."""
        return self.message.p50

    @property
    def p90(self) -> float:
        """90th percentile, which is one of the values."""
        return self.message.p90
