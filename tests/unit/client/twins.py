"""Both clients behind one face, so that a test is written once for the two."""

from __future__ import annotations

import asyncio
import inspect
from typing import Any

from lightningstore.client import AsyncLightningStore, LightningStore


class Twin:
    """Calls a client's methods by name; the blocking ones in threads."""

    def __init__(self, kind: str, address: str, **options: Any) -> None:
        self.blocking = kind == "blocking"
        cls = LightningStore if self.blocking else AsyncLightningStore
        self.client: Any = cls(address, **options)

    async def call(self, name: str, /, *arguments: Any, **options: Any) -> Any:
        """Call a method and return its result; iterators as lists."""
        method = getattr(self.client, name)
        if not self.blocking:
            result = method(*arguments, **options)
            if inspect.isawaitable(result):
                return await result
            return [item async for item in result]

        def run() -> Any:
            result = method(*arguments, **options)
            return list(result) if hasattr(result, "__next__") else result

        return await asyncio.to_thread(run)

    async def do(self, target: Any, name: str) -> Any:
        """Call a method of a stream."""
        method = getattr(target, name)
        return await asyncio.to_thread(method) if self.blocking else await method()

    async def next(self, stream: Any) -> Any:
        """Return the next of a stream; None at its end."""
        if self.blocking:
            return await asyncio.to_thread(next, stream, None)
        return await anext(stream, None)

    def client_with_timeout(self, timeout: float | None) -> Twin:
        """Return the same with another deadline, over the same connection."""
        other = Twin.__new__(Twin)
        other.blocking, other.client = self.blocking, self.client.with_timeout(timeout)
        return other

    async def close(self) -> None:
        """Close the client."""
        await self.call("close")
