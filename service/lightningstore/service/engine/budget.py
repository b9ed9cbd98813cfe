"""A limit in bytes shared by many callers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from lightningstore.service.rules.errors import Busy


class Budget:
    """Bytes that are held at the same time for one purpose, first come, first served."""

    def __init__(self, limit: int, what: str) -> None:
        """Set the limit in bytes, and the name of the bytes for errors."""
        self._limit = limit
        self._what = what
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        #: Bytes held now, and bytes that wait for space.
        self.used = self.waiting_bytes = 0

    @asynccontextmanager
    async def hold(self, size: int, seconds: float | None = None) -> AsyncIterator[None]:
        """Hold `size` bytes, after waiting for space for at most `seconds`. Raises Busy."""
        await self.take(size, seconds)
        try:
            yield
        finally:
            self.give(size)

    async def take(self, size: int, seconds: float | None = None) -> None:
        """Take `size` bytes, which the caller gives back.

        Waits for space for at most `seconds`; None: without a limit. The waiting bytes have the
        same limit as the held ones. A size above the limit is granted only when nothing else is
        held. Raises Busy.
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
            async with asyncio.timeout(seconds):
                await place[1]
        except TimeoutError:
            if not place[1].done() or place[1].cancelled():
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
        """Take `size` bytes if there is space now; the caller gives them back."""
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
