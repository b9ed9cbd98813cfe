"""GetSeries."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.selections import check_filters, filters_of
from lightningstore.service.rules.checks import check_enum
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.rewards import check_score_name
from lightningstore.service.rules.series import MAX_BUCKETS, SeriesQuery, Summary, divided
from lightningstore.service.rules.times import NANOS, nanoseconds, stamp
from lightningstore.v1.series_pb2 import (
    SERIES_AXIS_COMPLETION_NUMBER,
    SERIES_AXIS_COMPLETION_TIME,
    SERIES_AXIS_PUBLISH_NUMBER,
    SERIES_MEASURE_ATTEMPTS,
    SERIES_MEASURE_DURATION,
    SERIES_MEASURE_LAG,
    SERIES_MEASURE_QUEUE_TIME,
    SERIES_MEASURE_REWARD,
    SERIES_MEASURE_SCORE,
    GetSeriesRequest,
    GetSeriesResponse,
    SeriesAxis,
    SeriesBucket,
    SeriesMeasure,
)

#: Columns of the measures and of the axes.
_MEASURES: dict[int, str] = {
    SERIES_MEASURE_REWARD: "reward",
    SERIES_MEASURE_SCORE: "",
    SERIES_MEASURE_DURATION: "duration",
    SERIES_MEASURE_QUEUE_TIME: "queue_time",
    SERIES_MEASURE_ATTEMPTS: "attempt_count",
    SERIES_MEASURE_LAG: "lag",
}
_AXES: dict[int, str] = {
    SERIES_AXIS_COMPLETION_TIME: "end_time",
    SERIES_AXIS_COMPLETION_NUMBER: "completion_number",
    SERIES_AXIS_PUBLISH_NUMBER: "publish_number",
}
_LAST = (1 << 63) - 1


class SeriesQueries:
    """The call of series.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def get_series(self, request: GetSeriesRequest) -> GetSeriesResponse:
        """Return the buckets of a series."""
        _check(request)
        check_filters(self._engine, request)
        await self._engine.barrier()
        storage, axis = self._engine.storage, _AXES[request.axis]
        reply = GetSeriesResponse()
        found: tuple[int, int] | None = (1, self._engine.live.state.counters.resources_updates)
        if axis != "publish_number":
            found = await storage.series_range(axis)
        if found is None:
            return reply
        first, end = _range(request, *found)
        if first >= end:
            return reply
        width, count = divided(first, end, request.bucket_count)
        query = SeriesQuery(
            axis,
            _MEASURES[request.measure],
            first,
            width,
            count,
            end,
            request.score_name,
            filters_of(request),
        )
        for index, summary in (await storage.series(query)).items():
            reply.buckets.append(_bucket(query, index, summary))
        return reply


def _check(request: GetSeriesRequest) -> None:
    """Raise FieldInvalid for what is measured, and how it is divided."""
    check_enum("measure", SeriesMeasure, request.measure)
    check_enum("axis", SeriesAxis, request.axis)
    if request.measure == SERIES_MEASURE_SCORE:
        check_score_name("score_name", request.score_name)
    elif request.score_name:
        raise FieldInvalid("score_name", "is allowed only with SERIES_MEASURE_SCORE")
    if not 1 <= request.bucket_count <= MAX_BUCKETS:
        raise FieldInvalid(
            "bucket_count", f"{request.bucket_count} must be from 1 to {MAX_BUCKETS}"
        )
    by_time = request.axis == SERIES_AXIS_COMPLETION_TIME
    for name in ("start_time", "end_time"):
        _check_time(request, name, allowed=by_time)
    for name in ("first_number", "last_number"):
        if getattr(request, name) and by_time:
            raise FieldInvalid(name, "is not allowed with SERIES_AXIS_COMPLETION_TIME")
        if getattr(request, name) < 0:
            raise FieldInvalid(name, "must not be negative")
    _check_order(request)


def _check_time(request: GetSeriesRequest, name: str, *, allowed: bool) -> None:
    if not request.HasField(name):  # type: ignore[arg-type]
        return
    if not allowed:
        raise FieldInvalid(name, "is allowed only with SERIES_AXIS_COMPLETION_TIME")
    time: Timestamp = getattr(request, name)
    if not (0 <= time.nanos < NANOS and 0 <= nanoseconds(time) <= _LAST):
        raise FieldInvalid(name, "must be a time from 1970 to 2262, with nanos below 1e9")


def _check_order(request: GetSeriesRequest) -> None:
    if request.last_number and request.last_number < request.first_number:
        raise FieldInvalid("last_number", "must not be less than first_number")
    both = request.HasField("start_time") and request.HasField("end_time")
    if both and nanoseconds(request.end_time) <= nanoseconds(request.start_time):
        raise FieldInvalid("end_time", "must be later than start_time")


def _range(request: GetSeriesRequest, lowest: int, highest: int) -> tuple[int, int]:
    """Return the first value of the range, and the first one behind it."""
    first, end = lowest, highest + 1
    if request.HasField("start_time"):
        first = nanoseconds(request.start_time)
    if request.HasField("end_time"):
        end = nanoseconds(request.end_time)
    if request.last_number:
        end = min(request.last_number, _LAST >> 1) + 1  # databases reckon with 64 bits
    return request.first_number or first, end


def _bucket(query: SeriesQuery, index: int, found: Summary) -> SeriesBucket:
    bucket = SeriesBucket(
        index=index,
        count=found.count,
        mean=found.mean,
        min=found.lowest,
        max=found.highest,
        p10=found.p10,
        p50=found.p50,
        p90=found.p90,
    )
    low = query.first + index * query.width
    high = min(low + query.width, query.end)
    if query.axis == "end_time":
        bucket.start_time.CopyFrom(stamp(low))
        bucket.end_time.CopyFrom(stamp(high))
    else:
        bucket.first_number, bucket.last_number = low, high - 1
    return bucket
