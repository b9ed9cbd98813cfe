"""Which ids are stored: callers that ask at the same time share a query.

Each new rollout is looked for before it is stored. One query for each would cost more than the commits do.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence


class Known:
    """Looks for ids, those of all waiting callers with one query."""

    def __init__(
        self, query: Callable[[list[bytes]], Awaitable[Sequence[Sequence[bytes | None]]]]
    ) -> None:
        """Take the query, which returns a row for each id: the id if it is stored, else None."""
        self._query = query
        self._waiting: list[tuple[list[bytes], asyncio.Future[set[bytes | None]]]] = []
        self._task: asyncio.Task[None] | None = None

    async def among(self, ids: list[bytes]) -> list[bytes]:
        """Return those that were stored at some moment of the call, in their order."""
        future: asyncio.Future[set[bytes | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((ids, future))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._answer(), name="ids")
        found = await future
        return [each for each in ids if each in found]

    async def _answer(self) -> None:
        """Answer callers until none is waiting. Those that come during a query are answered by the next one."""
        while self._waiting:
            waiting, self._waiting = self._waiting, []
            try:
                rows = await self._query([each for ids, _ in waiting for each in ids])
            except Exception as error:
                for _, future in waiting:
                    if not future.done():
                        future.set_exception(error)
            else:
                found = {row[0] for row in rows}
                for _, future in waiting:
                    if not future.done():
                        future.set_result(found)
