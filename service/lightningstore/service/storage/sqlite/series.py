"""Series of a data file: SQLite puts the values of each bucket together, from one index that has all columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lightningstore.service.rules.rewards import score_mark
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary, divided
from lightningstore.service.storage import packed
from lightningstore.service.storage.sqlite import lists
from lightningstore.service.storage.sqlite.reader import FileReads

#: Buckets of one statement, and parts into which the time is divided for other axes.
BUCKETS_AT_ONCE, TIME_PARTS = 32, 128
#: Number of completion numbers whose rows are read one by one, and not the whole index.
FEW_NUMBERS = 10_000


class SeriesReads(FileReads):
    """The part of a data file's storage that reads series."""

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        """Return the lowest and the highest value of a column among finished rollouts, None if there are none."""
        ((lowest, highest),) = await self._reader.scan("series_range", axis=axis)
        return None if lowest is None else (lowest, highest)

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        """Return what is known of the values in each bucket that has any."""
        buckets: dict[int, Bucket] = {}
        for name, parameters, parts in await self._statements(query):
            for index, text in await self._reader.scan(name, parameters, **parts):
                if text is not None:
                    await packed.add(buckets.setdefault(index, Bucket()), query, text)
        return await packed.summaries_of(buckets, query)

    async def _statements(
        self, query: SeriesQuery
    ) -> Iterable[tuple[str, list[Any], dict[str, str]]]:
        """Return names of statements with their parameters and parts."""
        source, _, where, values = lists.selection(self._reader, query.rollouts)
        value, known, own = _measure(query)
        parts = {"value": value, "where": f"{known} AND {where}"}
        chosen = query.rollouts
        is_led = not chosen.any_of and (chosen.rollout_ids or chosen.group_ids - {""})
        if chosen.led_by_label or is_led:
            # An index leads to few rollouts.
            place = [query.first, query.width, *own[:-1], query.first, query.end]
            return [
                (
                    "series_of_all",
                    [*place, *own[-1:], *values],
                    {**parts, "axis": query.axis, "source": source},
                )
            ]
        if query.axis == "end_time":
            return _by_bucket(query, [*own, *values], parts)
        if query.axis == "completion_number" and query.end - query.first <= FEW_NUMBERS:
            place = [query.first, query.width, *own[:-1], query.first, query.end]
            return [
                (
                    "series_by_completion",
                    [*place, *own[-1:], *values],
                    {**parts, "axis": query.axis},
                )
            ]
        times = await self.series_range("end_time")
        return _by_time(query, times, [own, values], parts) if times is not None else []


def _measure(query: SeriesQuery) -> tuple[str, str, list[Any]]:
    """Return the values of a bucket as SQL, the condition that there is one, and the parameters of both."""
    # With a separator of its own, group_concat takes half as long again.
    if query.measure in packed.INTEGERS:
        return f"group_concat({query.measure})", f"{query.measure} >= 0", []
    if query.measure == "reward":
        value, known, own = "reward", "reward <> ''", []
    else:
        mark = score_mark(query.score)
        value = f"substr(scores, instr(scores, ?) + {len(mark)}, {packed.DIGITS})"
        known, own = "instr(scores, ?) > 0", [mark, mark]
    return f"group_concat({value})", known, own


def _by_bucket(
    query: SeriesQuery, values: list[Any], parts: dict[str, str]
) -> Iterator[tuple[str, list[Any], dict[str, str]]]:
    for start in range(0, query.count, BUCKETS_AT_ONCE):
        places: list[Any] = []
        few = range(start, min(query.count, start + BUCKETS_AT_ONCE))
        for index in few:
            low = query.first + index * query.width
            places += [index, low, min(low + query.width, query.end)]
        marks = ", ".join(["(?, ?, ?)"] * len(few))
        yield "series_by_bucket", [*places, *values], {**parts, "marks": marks}


def _by_time(
    query: SeriesQuery, times: tuple[int, int], values: list[list[Any]], parts: dict[str, str]
) -> Iterator[tuple[str, list[Any], dict[str, str]]]:
    own, filtered = values
    first, width = times[0], divided(times[0], times[1] + 1, TIME_PARTS)[0]
    for low in range(first, times[1] + 1, width):
        place = [query.first, query.width, *own[:-1]]
        limits = [low, low + width, query.first, query.end, *own[-1:]]
        yield "series_by_time", [*place, *limits, *filtered], {**parts, "axis": query.axis}
