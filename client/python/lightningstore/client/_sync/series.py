# Generated from _async/series.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Series of finished rollouts, in the blocking client."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from lightningstore.client._calls import series as calls
from lightningstore.client._sync.caller import Caller
from lightningstore.client.values import RolloutFilters, SeriesBucket

if TYPE_CHECKING:
    from typing_extensions import Unpack


class SeriesCalls(Caller):
    """The call on series."""

    def get_series(
        self,
        measure: str | int = "reward",
        *,
        axis: str | int = "completion_number",
        bucket_count: int = 100,
        score_name: str = "",
        start_time: datetime | None = None,
        end_time: datetime | None = None,
        first_number: int = 0,
        last_number: int = 0,
        **filters: Unpack[RolloutFilters],
    ) -> list[SeriesBucket]:
        """Get how a measure of finished rollouts developed, in buckets of equal width.

        Args:
            measure: "reward", "score", "duration", "queue_time", "attempts" or "lag". Durations are
                seconds.
            axis: What is divided: "completion_number", "completion_time" or "publish_number".
            bucket_count: Number of buckets, from 1 to 500. Whole numbers are not divided: there may be fewer.
            score_name: Name of the score, if the measure is "score".
            start_time: Start of the range of completion times. None: the first.
            end_time: End of the range of completion times, which is not part of it. None: after the last.
            first_number: First number of the range. 0: the first.
            last_number: Last number of the range. 0: the last.
            **filters: Which rollouts, see `RolloutFilters`.

        Returns:
            The buckets that hold a rollout whose measure is known, in order.

        Raises:
            InvalidArgumentError: An argument is out of range, or does not fit the measure or the axis.
            ValueError: The measure, the axis, a status or a mode is unknown, or a time has no time zone.
            TypeError: A filter is unknown.

        Example:
            rollout = store.start_rollout({"question": 1})
            store.update_attempt(rollout.rollout_id, "latest", status="succeeded", reward=0.5)
            for bucket in store.get_series("reward", bucket_count=50):
                print(bucket.first_number, bucket.count, bucket.mean)
        """
        return self._send(
            calls.get_series(
                measure,
                axis,
                bucket_count,
                score_name=score_name,
                start_time=start_time,
                end_time=end_time,
                numbers=(first_number, last_number),
                filters=filters,
            )
        )
