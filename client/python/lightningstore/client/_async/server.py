"""The server itself, in the asyncio client: statistics and properties."""

from __future__ import annotations

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import traces as calls
from lightningstore.client.values import ServerInfo, Statistics


class AsyncServerCalls(AsyncCaller):
    """The calls about the server itself."""

    async def get_statistics(self) -> Statistics:
        """Get the numbers of rollouts, attempts, workers and spans, and the sizes of queue and data file.

        Returns:
            The statistics at this moment.
        """
        return await self._send(calls.get_statistics())

    async def get_server_info(self) -> ServerInfo:
        """Get the server's version, store id, back end, durability and limits.

        Returns:
            The properties of the server.
        """
        return await self._send(calls.get_server_info())
