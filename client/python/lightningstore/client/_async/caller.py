"""What all calls of the asyncio client share: the transport, the timeout, retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._calls.call import Call
from lightningstore.client._calls.uploads import async_is_repeatable, async_requests
from lightningstore.client._transport.methods import repeats_are_harmless
from lightningstore.client._transport.protocols import AsyncTransport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.errors import LightningStoreError

Item = TypeVar("Item")
T = TypeVar("T")


class AsyncCaller:
    """Sends calls through a transport and retries them until their deadline."""

    _transport: AsyncTransport
    #: Seconds of a call, its retries included. None: no deadline.
    _timeout: float | None

    async def _send(self, call: Call[T]) -> T:
        timeout = None if self._timeout is None else self._timeout + call.wait
        retry = Retry(timeout, safe=repeats_are_harmless(call.method, call.request))
        while True:
            try:
                answer = await self._transport.unary(call.method, call.request, retry.remaining())
            except LightningStoreError as error:
                delay = retry.delay_after(error)
                if delay is None:
                    raise
            else:
                return call.shape(answer)
            await asyncio.sleep(delay)

    async def _upload(
        self,
        method: str,
        items: Iterable[Item] | AsyncIterable[Item],
        messages: Callable[[Item], Iterable[Message]],
        shape: Callable[[Any], T],
    ) -> T:
        """Send items over a client stream, again after a break if they can be iterated again.

        The call has no deadline while the server accepts items. It fails if the server accepts none for as long as the
        timeout.
        """
        repeatable = async_is_repeatable(items)
        retry = Retry(self._timeout)
        retry.heard()
        while True:
            try:
                answer = await self._transport.client_stream(
                    method, async_requests(items, messages), None, stall=self._timeout
                )
            except LightningStoreError as error:
                delay = retry.delay_after(error) if repeatable else None
                if delay is None:
                    raise
            else:
                return shape(answer)
            await asyncio.sleep(delay)
