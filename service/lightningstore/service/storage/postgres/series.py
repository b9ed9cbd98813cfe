"""Series of a namespace: the database puts the values of each bucket together."""

from __future__ import annotations

from lightningstore.service.rules.rewards import score_mark
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary
from lightningstore.service.storage import packed
from lightningstore.service.storage.postgres import filters
from lightningstore.service.storage.postgres.database import READS
from lightningstore.service.storage.postgres.lists import ListReads


class SeriesReads(ListReads):
    """The part of a namespace's storage that reads series."""

    async def series_range(self, axis: str) -> tuple[int, int] | None:
        """Return the lowest and the highest value of a column among finished rollouts, None if there are none."""
        ((lowest, highest),) = await self._scan(READS["series_range"].format(axis=axis))
        return None if lowest is None else (lowest, highest)

    async def series(self, query: SeriesQuery) -> dict[int, Summary]:
        """Return what is known of the values in each bucket that has any."""
        leader, _ = await self._leader(query.rollouts)
        source, finished, values = filters.chosen(query.rollouts, leader)
        first = 2 + len(values)
        limits = {"first": f"${first}", "width": f"${first + 1}", "end": f"${first + 2}"}
        values += [query.first, query.width, query.end]
        if query.measure in packed.INTEGERS:
            value, known = f"string_agg({query.measure}::text, ',')", f"{query.measure} >= 0"
        else:
            number = "reward"
            known = "reward <> ''"
            if query.measure != "reward":
                mark = score_mark(query.score).encode()
                values.append(mark)
                found = f"position(${first + 3}::bytea IN scores)"
                number = f"substring(scores FROM {found} + {len(mark)} FOR {packed.DIGITS})"
                known = f"{found} > 0"
            value = f"convert_from(string_agg({number}, ''), 'SQL_ASCII')"
        text = READS["series"].format(
            value=value, axis=query.axis, source=source, finished=finished, where=known, **limits
        )
        buckets: dict[int, Bucket] = {}
        for index, found_text in await self._scan(text, *values):
            await packed.add(buckets.setdefault(index, Bucket()), query, found_text)
        return await packed.summaries_of(buckets, query)
