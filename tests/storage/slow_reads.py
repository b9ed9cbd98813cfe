"""Reads of a storage that return when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from lightningstore.service.operations.store import Store


class SlowReads:
    """Lets reads of a storage read at once, and return when the test says so."""

    def __init__(self, store: Store, method: str) -> None:
        self._read = getattr(store.engine.storage, method)
        self._on = False
        self._waiting: list[asyncio.Event] = []
        self._arrived = asyncio.Event()
        setattr(store.engine.storage, method, self._slow)

    async def _slow(self, *args: Any) -> Any:
        result = await self._read(*args)
        if self._on:
            event = asyncio.Event()
            self._waiting.append(event)
            self._arrived.set()
            await event.wait()
        return result

    async def begin(self, call: Awaitable[Any]) -> asyncio.Task[Any]:
        """Begin a call, and return once its read waits, or it has ended without one."""
        task = asyncio.ensure_future(call)
        self._on = True
        self._arrived.clear()
        arrived = asyncio.ensure_future(self._arrived.wait())
        await asyncio.wait([task, arrived], return_when=asyncio.FIRST_COMPLETED)
        arrived.cancel()
        self._on = False
        return task

    def release(self, which: int = 0) -> None:
        """Let a read return that waits, by default the first."""
        if self._waiting:
            self._waiting.pop(which % len(self._waiting)).set()

    def release_all(self) -> None:
        """Let all reads return."""
        while self._waiting:
            self.release()
