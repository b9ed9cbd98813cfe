"""Series: how a range is divided into buckets, and what is known of the values in a bucket. Pure."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain

from lightningstore.service.rules.rewards import number_of
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow

MAX_BUCKETS = 500
#: Values that are sorted at once: 2 ms.
SORTED_AT_ONCE = 10_000


@dataclass(frozen=True)
class SeriesQuery:
    """Which values a series has, and how they are divided. Created by `operations/series.py`."""

    #: A column of the rollouts: end_time, completion_number, publish_number.
    axis: str
    #: A column of the rollouts: reward, duration, queue_time, attempt_count, lag; "" for a score.
    measure: str
    #: First value of the axis, width of a bucket, and number of buckets.
    first: int
    width: int
    count: int
    #: First value of the axis behind the range.
    end: int
    #: Name of the score, if the measure is one.
    score: str = ""
    #: The filters; its order and page do not apply.
    rollouts: RolloutQuery = field(default_factory=RolloutQuery)


@dataclass(frozen=True)
class Summary:
    """What is known of the values in a bucket."""

    count: int
    mean: float
    lowest: float
    highest: float
    p10: float
    p50: float
    p90: float


def divided(first: int, end: int, buckets: int) -> tuple[int, int]:
    """Return width and number of the buckets of a range of whole numbers, `end` excluded."""
    # Not by `/`: nanoseconds since 1970 have more digits than a float.
    width = max(1, -((first - end) // buckets))
    return width, max(1, -((first - end) // width))


def measured(query: SeriesQuery) -> Callable[[RolloutRow], float | None]:
    """Return what a query measures of a row, None where it is not known."""
    if query.measure == "attempt_count":
        return lambda row: row.rollout.attempt_count
    if query.measure == "reward":
        return lambda row: number_of(row.measures.reward) if row.measures.reward else None
    if query.measure == "duration":
        return lambda row: _seconds(row.measures.duration_ns)
    if query.measure == "queue_time":
        return lambda row: _seconds(row.measures.queue_ns)
    if query.measure == "lag":
        return lambda row: row.measures.lag if row.measures.lag >= 0 else None
    return lambda row: dict(row.measures.scores).get(query.score)


def _seconds(nanoseconds: int) -> float | None:
    return nanoseconds / 1e9 if nanoseconds >= 0 else None


class Bucket:
    """Collects the values of a bucket, in sorted runs: sorting a million at once would hold the event loop."""

    __slots__ = ("_runs", "_unsorted")

    def __init__(self) -> None:
        self._runs: list[list[float]] = []
        self._unsorted = array("d")

    def add(self, values: Iterable[float]) -> None:
        """Add values."""
        self._unsorted.extend(values)
        while len(self._unsorted) >= SORTED_AT_ONCE:
            self._sort(SORTED_AT_ONCE)

    def _sort(self, count: int) -> None:
        run = self._unsorted[:count].tolist()
        run.sort()  # a fifth faster than `sorted`, which takes numbers from an array one by one
        self._runs.append(run)
        del self._unsorted[:count]

    def summary(self, unit: float = 1) -> Summary:
        """Return what is known of the values, each divided by `unit`. There is at least one."""
        if self._unsorted:
            self._sort(len(self._unsorted))
        runs = self._runs
        count = sum(map(len, runs))
        try:
            mean = math.fsum(runs[0] if len(runs) == 1 else chain.from_iterable(runs)) / count
        except OverflowError:  # of large values, the mean is the sum of their shares
            mean = math.fsum(value / count for run in runs for value in run)
        lowest, highest = min(run[0] for run in runs), max(run[-1] for run in runs)
        at = [self._ranked(math.ceil(count * tenths / 10)) for tenths in (1, 5, 9)]
        found = (min(max(mean, lowest), highest), lowest, highest, *at)
        return Summary(count, *(value / unit for value in found))

    def _ranked(self, rank: int) -> float:
        """Return the value of a rank, from 1 on."""
        runs = self._runs
        if len(runs) == 1:
            return runs[0][rank - 1]
        # The median of what may still be it, run by run, until one value is left.
        spans = [(0, len(run)) for run in runs]
        while True:
            open_spans = [(high - low, i) for i, (low, high) in enumerate(spans) if high > low]
            _, i = max(open_spans)
            low, high = spans[i]
            pivot = runs[i][(low + high) // 2]
            upto = [bisect_right(run, pivot) for run in runs]
            below = [bisect_right(run, math.nextafter(pivot, -math.inf)) for run in runs]
            if sum(below) < rank <= sum(upto):
                return pivot
            if rank <= sum(below):
                spans = [(low, min(high, to)) for (low, high), to in zip(spans, below, strict=True)]
            else:
                spans = [(max(low, to), high) for (low, high), to in zip(spans, upto, strict=True)]
