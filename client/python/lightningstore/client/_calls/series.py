"""Requests about series, and the conversion of their responses."""

from __future__ import annotations

from datetime import datetime

from lightningstore.client._calls.call import Call
from lightningstore.client._values import convert
from lightningstore.client._values.rollouts import FILTER_LOGIC, ROLLOUT_MODE, ROLLOUT_STATUS
from lightningstore.client._values.series import SERIES_AXIS, SERIES_MEASURE
from lightningstore.client._values.text import names_fields, naming
from lightningstore.client.values import RolloutFilters, SeriesBucket
from lightningstore.v1 import series_pb2


@names_fields
def get_series(
    measure: str | int,
    axis: str | int,
    bucket_count: int,
    *,
    score_name: str,
    start_time: datetime | None,
    end_time: datetime | None,
    numbers: tuple[int, int],
    filters: RolloutFilters,
) -> Call[list[SeriesBucket]]:
    """GetSeries. `numbers`: the first and the last one of the range."""
    request = series_pb2.GetSeriesRequest(
        measure=convert.to_number(SERIES_MEASURE, measure),  # type: ignore[arg-type]
        score_name=score_name,
        axis=convert.to_number(SERIES_AXIS, axis),  # type: ignore[arg-type]
        bucket_count=bucket_count,
        first_number=numbers[0],
        last_number=numbers[1],
    )
    for name, moment in (("start_time", start_time), ("end_time", end_time)):
        if moment is not None:
            with naming(name):
                getattr(request, name).CopyFrom(convert.to_timestamp(moment))
    _set_filters(request, filters)
    return Call("GetSeries", request, _buckets)


def _set_filters(request: series_pb2.GetSeriesRequest, filters: RolloutFilters) -> None:
    if unknown := filters.keys() - RolloutFilters.__annotations__.keys():
        raise TypeError(f"get_series has no {', '.join(sorted(unknown))}")
    logic = filters.get("filter_logic", "and")
    request.MergeFrom(
        series_pb2.GetSeriesRequest(
            statuses=convert.to_numbers(ROLLOUT_STATUS, filters.get("statuses", ())),
            rollout_ids=convert.ids(filters.get("rollout_ids", ()), "rollout_ids"),
            rollout_id_contains=filters.get("rollout_id_contains", ""),
            modes=convert.to_numbers(ROLLOUT_MODE, filters.get("modes", ())),
            group_ids=convert.ids(filters.get("group_ids", ()), "group_ids"),
            queues=convert.ids(filters.get("queues", ()), "queues"),
            labels=filters.get("labels", {}),
            filter_logic=convert.to_number(FILTER_LOGIC, logic),  # type: ignore[arg-type]
            min_reward=filters.get("min_reward"),
            max_reward=filters.get("max_reward"),
        )
    )


def _buckets(answer: series_pb2.GetSeriesResponse) -> list[SeriesBucket]:
    return [SeriesBucket(bucket) for bucket in answer.buckets]
