"""The way to the server that owns the client's namespace, where several servers share the namespaces.

A server answers for namespaces that another server owns, and its answers name the owner in a trailer. The client then
connects to the owner beside its first connection, and goes on there once that is connected. Calls never wait for it: where
the owner cannot be reached from here, or no longer owns the namespace, they take the first connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc.aio
from lightningstore.client._transport.channel import Stub, options
from lightningstore.client.connection import Endpoint

#: Trailer with the owner's address, as host:port.
OWNER_KEY = "x-lightning-owner"
#: One in this many calls looks for the trailer, beginning with the first.
LOOK_EVERY = 16
#: Seconds that the owner has to accept the connection, and until it is tried again if it did not.
CONNECT_SECONDS = 3.0
RETRY_SECONDS = 60.0
#: An address that a client follows: a host, or an IPv6 address in brackets, and a port.
ADDRESS = re.compile(r"(?!unix:|vsock:)([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.%]{2,60}\]):[0-9]{1,5}")


class Owner:
    """The connection to the owner, if there is one. Belongs to one event loop.

    Args:
        endpoint: The address and credentials of the first connection.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stub: Any = None
        self._channel: grpc.aio.Channel | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self._calls = 0
        self._closed = False

    @property
    def stub(self) -> Any:
        """The calls of the contract at the owner; None: use the first connection."""
        if self._stub is not None and self._loop is not asyncio.get_running_loop():
            self._stub = self._channel = None  # the channel of another loop closes when it is freed
        return self._stub

    def is_due(self) -> bool:
        """Count a call over the first connection, and tell whether its trailers should be looked at."""
        self._calls += 1
        return self._calls % LOOK_EVERY == 1

    def learn(self, trailers: Iterable[tuple[str, Any]]) -> None:
        """Connect to the owner that trailers name. Returns at once.

        Args:
            trailers: The trailing metadata of an answer.
        """
        for key, address in trailers:
            # A name of another kind, such as a path of a socket, is not the address of a server's.
            if key == OWNER_KEY and ADDRESS.fullmatch(str(address)):
                self._follow(str(address))

    def _follow(self, address: str) -> None:
        loop = asyncio.get_running_loop()
        is_connecting = self._connecting is not None and not self._connecting.done()
        if self._closed or is_connecting or self._stub is not None or loop.time() < self._retry_at:
            return
        self._loop = loop
        self._connecting = loop.create_task(self._connect(address))

    async def _connect(self, address: str) -> None:
        channel = replace(self._endpoint, address=address).async_channel(options())
        try:
            # Not `wait_for`: in Python 3.11 it ignores a cancellation as the wait ends.
            async with asyncio.timeout(CONNECT_SECONDS):
                await channel.channel_ready()
        except BaseException as error:
            self._retry_at = asyncio.get_running_loop().time() + RETRY_SECONDS
            await channel.close()
            if not isinstance(error, TimeoutError | asyncio.TimeoutError):
                raise
        else:
            self._channel, self._stub = channel, Stub(channel)

    def drop(self, stub: Any) -> None:
        """Use the first connection again: a call at the owner failed.

        Args:
            stub: The calls that were used. A newer connection stays.
        """
        if stub is self._stub:
            channel, self._channel, self._stub = self._channel, None, None
            self._calls = 0
            if channel is not None:
                self._connecting = asyncio.get_running_loop().create_task(channel.close())

    def has_left(self, stub: Any) -> bool:
        """Return whether the client no longer uses a connection, although it is not closed itself.

        Args:
            stub: The calls that were used.
        """
        return not self._closed and stub is not self._stub

    async def close(self) -> None:
        """Close the connection; calls that run fail."""
        self._closed = True
        channel, self._channel, self._stub = self._channel, None, None
        if self._loop is not asyncio.get_running_loop():
            return
        if self._connecting is not None:
            self._connecting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._connecting
        if channel is not None:
            await channel.close()
