"""`lightningstore series`: how a measure of finished rollouts developed, in buckets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import click
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.output import Listing
from lightningstore.service.cli.rollouts import filter_options, set_filters
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.views import (
    enum_words,
    now,
    number,
    plain,
    reward_cell,
    time_cell,
    view,
)
from lightningstore.v1 import series_pb2

_SCORE = "scores."
MEASURES = [
    word
    for word in enum_words(series_pb2.SeriesMeasure.keys(), "SERIES_MEASURE_")
    if word != "score"
]
AXES = enum_words(series_pb2.SeriesAxis.keys(), "SERIES_AXIS_")
_BAR_CELLS = 24
_EIGHTHS = " ▏▎▍▌▋▊▉█"
COLUMNS = (
    Column("FROM", rank=0),
    Column("TO", rank=3),
    Column("COUNT", "number", rank=1),
    Column("MIN", "number", wide=True),
    Column("P10", "number", rank=2),
    Column("P50", "number", rank=2),
    Column("P90", "number", rank=2),
    Column("MAX", "number", wide=True),
    Column("MEAN", rank=0),
)


class _Measure(click.ParamType):  # type: ignore[type-arg]
    """A measure, or scores.NAME; a pair of the number of the measure and the name of the score."""

    name = "measure"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[Any, str]:
        """Return the number of the measure, and the name of the score."""
        if value in MEASURES:
            return series_pb2.SeriesMeasure.Value(f"SERIES_MEASURE_{value.upper()}"), ""
        if value.startswith(_SCORE) and value != _SCORE:
            return series_pb2.SERIES_MEASURE_SCORE, value.removeprefix(_SCORE)
        return self.fail(f"{value!r} must be {', '.join(MEASURES)} or scores.NAME", param, ctx)


class _Place(click.ParamType):  # type: ignore[type-arg]
    """A number, or a time: which of them is allowed depends on --by."""

    name = "number|time"

    def convert(self, value: Any, param: Any, ctx: Any) -> int | datetime:
        """Return the number or the time."""
        text = str(value)
        try:
            return units.number_of(text) if text.isdecimal() else units.moment_of(text, now())
        except ValueError as error:
            return self.fail(str(error), param, ctx)


def _series(
    server: Connection,
    measure: tuple[Any, str],
    by: str,
    buckets: int,
    first: int | datetime | None,
    last: int | datetime | None,
    **given: Any,
) -> Listing:
    """Show how a measure of finished rollouts developed.

    MEASURE is reward (the default), duration, queue_time, attempts, lag, or scores.NAME for a score. The finished rollouts are divided into buckets of equal width by completion number, completion time, or publish
    number of the resources that they ran with. Buckets without a rollout are left out. The bars compare the means.
    Durations and queue times are seconds.
    """
    request = series_pb2.GetSeriesRequest(
        measure=measure[0],
        score_name=measure[1],
        axis=series_pb2.SeriesAxis.Value(f"SERIES_AXIS_{by.upper()}"),
        bucket_count=buckets,
    )
    set_filters(request, given)
    for value, time, numbered in (
        (first, "start_time", "first_number"),
        (last, "end_time", "last_number"),
    ):
        if isinstance(value, datetime):
            getattr(request, time).FromDatetime(value)
        elif value is not None:
            setattr(request, numbered, value)
    found = server.call(request).buckets
    bars = _bars([bucket.mean for bucket in found])
    rows = [_row(bucket, bar) for bucket, bar in zip(found, bars, strict=True)]
    return Listing("bucket", COLUMNS, rows, [plain(bucket) for bucket in found])


def _row(bucket: Any, bar: str) -> list[Any]:
    if bucket.HasField("start_time"):
        places = [time_cell(bucket.start_time), time_cell(bucket.end_time)]
    else:
        places = [number(bucket.first_number), number(bucket.last_number)]
    mean = reward_cell(bucket.mean)
    return [
        *places,
        number(bucket.count),
        *map(reward_cell, (bucket.min, bucket.p10, bucket.p50, bucket.p90, bucket.max)),
        Cell(f"{mean.text:<10} {bar}".rstrip(), mean.raw),
    ]


def _bars(means: Sequence[float]) -> list[str]:
    """Return a bar for each mean: from 0 to the greatest, or from the lowest where one is negative."""
    lowest, highest = min([0.0, *means]), max([0.0, *means])
    width = highest - lowest
    bars = []
    for mean in means:
        share = (mean - lowest) / width if 0 < width < math.inf else 0.0
        eighths = round(share * _BAR_CELLS * 8)
        bars.append("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip())
    return bars


series = view(
    "series",
    click.Argument(["measure"], type=_Measure(), default="reward", metavar="[MEASURE]"),
    click.Option(
        ["--by"],
        type=click.Choice(AXES),
        default="completion_number",
        help="What the buckets divide. Default: completion_number.",
    ),
    click.Option(
        ["--buckets"],
        type=click.IntRange(1, 500),
        default=20,
        metavar="N",
        help="Number of buckets; numbers are not divided, so there may be fewer. Default: 20.",
    ),
    click.Option(
        ["--from", "first"],
        type=_Place(),
        help="Start of the range: a number, or a time like 2h (ago) or 2026-01-31T12:00:00Z with completion_time.",
    ),
    click.Option(
        ["--to", "last"],
        type=_Place(),
        help="End of the range: its last number, or the time before which it ends.",
    ),
    *filter_options(),
)(_series)
