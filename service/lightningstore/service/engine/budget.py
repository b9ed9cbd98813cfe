"""A limit of bytes that many callers share."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lightningstore.service.rules.errors import Busy


class Budget:
    """Bytes that are held at the same time, for one purpose. Whoever comes first gets room first."""

    def __init__(self, limit: int, what: str) -> None:
        """Take the limit in bytes, and what the bytes are, for errors."""
        self._limit = limit
        self._what = what
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        #: Bytes held now, and bytes that wait for room.
        self.used = self.waiting_bytes = 0

    @asynccontextmanager
    async def hold(self, size: int, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold `size` bytes, after waiting for room for at most `seconds`. Raises Busy."""
        await self.take(size, seconds)
        try:
            yield
        finally:
            self.give(size)

    async def take(self, size: int, seconds: float | None = None) -> None:
        """Take `size` bytes, which the caller gives back.

        Waits for room for at most `seconds`; None: without a limit. What waits has the limit of what is held.
        More than the limit has room alone. Raises Busy.
        """
        if not self._waiting and self._has_room(size):
            self.used += size
            return
        if self._waiting and self.waiting_bytes + size > self._limit:
            raise self._busy()
        place = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self.waiting_bytes += size
        try:
            await asyncio.wait_for(place[1], seconds)
        except TimeoutError:
            raise self._busy() from None
        except BaseException:
            if place[1].done() and not place[1].cancelled():
                self.give(size)  # the room came as the caller went
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)
                self.waiting_bytes -= size
                self._wake()

    def try_take(self, size: int) -> bool:
        """Take `size` bytes if there is room now; the caller gives them back."""
        if self._waiting or self.used + size > self._limit:
            return False
        self.used += size
        return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        self.used -= size
        self._wake()

    def _has_room(self, size: int) -> bool:
        return self.used == 0 or self.used + size <= self._limit

    def _wake(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][0]):
            size, future = self._waiting.popleft()
            self.waiting_bytes -= size
            if not future.done():
                self.used += size
                future.set_result(None)

    def _busy(self) -> Busy:
        return Busy(
            f"{self.used} bytes of {self._what} are held and {self.waiting_bytes} wait, at most "
            f"{self._limit} may"
        )
