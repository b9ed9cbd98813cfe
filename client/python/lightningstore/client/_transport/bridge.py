"""Asyncio calls over a blocking channel, for processes in which grpc.aio does not work: see `channel`.

Unary calls need no thread; a stream needs one while it is open. An event loop cannot wait until a queue has room, so it
polls a full queue.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from google.protobuf.message import Message
from lightningstore.client._transport.forks import gate
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.client._transport.protocols import ServerStream
from lightningstore.client.errors import LightningStoreError

#: Maximum number of open streams.
MAX_STREAMS = 1000
#: Maximum messages of a client stream that wait for the network.
AHEAD = 16


class ThreadedTransport:
    """Carries asyncio calls over a blocking transport, from any number of event loops.

    Args:
        inner: The blocking transport. Closing this transport closes it.
    """

    def __init__(self, inner: GrpcTransport) -> None:
        self._inner = inner
        self._threads = ThreadPoolExecutor(MAX_STREAMS, thread_name_prefix="lightningstore")

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one request and one response.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.
            timeout: Deadline in seconds. None: no deadline.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            RuntimeError: The transport is closed.
        """
        call, _ = gate.begin(lambda: self._inner.begin(method, request, timeout))
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        call.when_done(lambda: loop.call_soon_threadsafe(done.set))
        try:
            await done.wait()
        except asyncio.CancelledError:
            call.cancel()
            raise
        return call.result()

    def server_stream(self, method: str, request: Message, timeout: float | None) -> _Answers:
        """Start a call with a stream of responses.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.
            timeout: Deadline in seconds. None: no deadline.

        Returns:
            The responses. Errors of the call are raised while iterating.

        Raises:
            RuntimeError: The transport is closed.
        """
        return _Answers(self._inner.server_stream(method, request, timeout), self._threads)

    async def client_stream(
        self,
        method: str,
        requests: AsyncIterable[Message],
        timeout: float | None,
        *,
        stall: float | None = None,
    ) -> Any:
        """Make a call with a stream of requests. Errors of the iterable are raised unchanged.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            requests: The request messages.
            timeout: Deadline in seconds. None: no deadline.
            stall: Seconds that the server may take to accept a request, or to answer after the last one. None: no
                limit.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            RuntimeError: The transport is closed.
        """
        loop = asyncio.get_running_loop()
        ahead: queue.Queue[Message | None] = queue.Queue(AHEAD)
        answer = loop.run_in_executor(
            self._threads,
            lambda: self._inner.client_stream(method, _drain(ahead), timeout, stall=stall),
        )
        try:
            async for request in requests:
                while not answer.done() and not _offer(ahead, request):  # noqa: ASYNC110
                    await asyncio.sleep(0.005)
                if answer.done():  # rejected early
                    break
        finally:
            while not answer.done() and not _offer(ahead, None):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return await answer

    async def close(self) -> None:
        """Cancel all calls, and accept no more."""
        self._inner.close()
        self._threads.shutdown(wait=False)


def _offer(ahead: queue.Queue[Message | None], item: Message | None) -> bool:
    try:
        ahead.put_nowait(item)
    except queue.Full:
        return False
    return True


def _drain(ahead: queue.Queue[Message | None]) -> Iterator[Message]:
    while (item := ahead.get()) is not None:
        yield item


class _Answers:
    """The responses of one call, each read by a thread."""

    def __init__(self, answers: ServerStream, threads: ThreadPoolExecutor) -> None:
        self._answers = answers
        self._threads = threads

    async def _wait_for(self, function: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._threads, function)
        except (LightningStoreError, asyncio.CancelledError):
            self._answers.close()
            raise

    async def ready(self) -> None:
        await self._wait_for(self._answers.ready)

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Any:
        answer = await self._wait_for(lambda: next(self._answers, None))
        if answer is None:
            raise StopAsyncIteration
        return answer

    async def aclose(self) -> None:
        self._answers.close()
