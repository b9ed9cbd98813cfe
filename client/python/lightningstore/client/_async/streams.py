"""Waits, watches and queries of the asyncio client. Each resumes after a broken connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from lightningstore.client._calls.groups import GroupWatchState
from lightningstore.client._calls.streams import (
    ReadState,
    ResourceWatchState,
    StreamState,
    WaitState,
    WatchState,
)
from lightningstore.client._transport.protocols import AsyncServerStream, AsyncTransport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.errors import LightningStoreError, UnavailableError
from lightningstore.client.values import Group, Resources, Rollout

T = TypeVar("T")

#: The error of a stream that the server ended without its last message.
ENDED_EARLY = "the server ended the stream before its end"


class AsyncItemStream(Generic[T]):
    """Items of a wait or a watch, to be iterated once. Usable as a context manager, which closes the stream.

    After a broken connection the stream resumes. UnavailableError is raised if that fails for the timeout of the
    client.

    Args:
        transport: What carries the call.
        state: What to request, and which items of a response are new.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(
        self, transport: AsyncTransport, state: StreamState[T], timeout: float | None
    ) -> None:
        self._transport = transport
        self._progress = state
        self._retry = Retry(timeout)
        self._retry.heard()
        self._stream: AsyncServerStream | None = None
        self._buffer: deque[T] = deque()
        self._closed = False

    async def registered(self) -> None:
        """Return once the server has registered the call: nothing later is missed.

        Calling it before iterating is optional.

        Raises:
            LightningStoreError: The call failed, for the reasons that the method returning this stream names.
        """
        while (stream := await self._open()) is not None:
            try:
                await stream.ready()
            except LightningStoreError as error:
                await self._wait_after(stream, error)
            else:
                self._retry.heard()
                return

    def __aiter__(self) -> AsyncIterator[T]:
        return self

    async def __anext__(self) -> T:
        while not self._buffer:
            self._progress.passed_on_all()
            stream = await self._open()
            if stream is None:
                await self.aclose()
                raise StopAsyncIteration
            try:
                answer = await stream.__anext__()
            except StopAsyncIteration:
                if not self._ended():
                    await self._wait_after(stream, UnavailableError(ENDED_EARLY))
            except LightningStoreError as error:
                await self._wait_after(stream, error)
            except asyncio.CancelledError:
                # Cancelling a read, by wait_for perhaps, cancels its call. The next read resumes from here.
                if self._stream is stream:
                    self._stream = None
                await stream.aclose()
                raise
            else:
                self._retry.heard()
                self._buffer.extend(self._progress.take(answer))
        item = self._buffer.popleft()
        self._progress.passed_on(item)
        return item

    async def aclose(self) -> None:
        """Cancel the call and end the stream. May be called at any time."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            await stream.aclose()

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _open(self) -> AsyncServerStream | None:
        """Return the call, started if it is not open; None at the end."""
        if self._stream is None and not self._ended():
            request = self._progress.request()
            if request is not None:
                self._stream = self._transport.server_stream(self._progress.method, request, None)
        if self._closed:
            # In the blocking client another thread may close the stream while the call starts.
            await self.aclose()
        return None if self._ended() else self._stream

    async def _wait_after(self, stream: AsyncServerStream, error: LightningStoreError) -> None:
        if self._stream is stream:
            self._stream = None
        delay = self._retry.delay_after(error)
        if delay is None:
            self._closed = True
            raise error
        await asyncio.sleep(delay)

    def _ended(self) -> bool:
        return self._closed or self._progress.ended


class AsyncWaitStream(AsyncItemStream[Rollout]):
    """Rollouts that are waited for, each once, as they finish. Returned by `wait_for_rollouts`.

    Args:
        transport: What carries the call.
        state: What is waited for.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: AsyncTransport, state: WaitState, timeout: float | None) -> None:
        super().__init__(transport, state, timeout)
        self._state = state

    @property
    def finished_count(self) -> int:
        """Number of rollouts that have finished so far."""
        return self._state.finished_count

    @property
    def open_rollout_ids(self) -> list[str]:
        """Ids of the rollouts that have not finished, in the requested order. Empty before the end of the stream."""
        return self._state.open_rollout_ids

    async def results(self) -> list[Rollout]:
        """Wait until the end, and return the rollouts that have not been iterated yet.

        Returns:
            The rollouts, in the order in which they finished.

        Raises:
            NotFoundError: A rollout does not exist, or a group has no rollouts.
            InvalidArgumentError: `min_count` is invalid, or nothing is waited for.
        """
        return [rollout async for rollout in self]


class AsyncWatchStream(AsyncItemStream[Rollout]):
    """Finishes in the order of their completion numbers, without end. Returned by `watch_rollouts`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: AsyncTransport, state: WatchState, timeout: float | None) -> None:
        super().__init__(transport, state, timeout)
        self._state = state

    @property
    def through_completion_number(self) -> int | None:
        """Number of the last finish that has been iterated. None: the server has not answered yet."""
        return self._state.through_completion_number

    @property
    def store_id(self) -> str:
        """Id of the store that the completion numbers belong to. Empty until the server has answered."""
        return self._state.store_id


class AsyncResourceStream(AsyncItemStream[Resources]):
    """Publications of resources in the order of their numbers, without end. Returned by `watch_resources`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(
        self, transport: AsyncTransport, state: ResourceWatchState, timeout: float | None
    ) -> None:
        super().__init__(transport, state, timeout)
        self._state = state

    @property
    def through_publish_number(self) -> int | None:
        """Number of the last publication that has been iterated. None: the server has not answered yet."""
        return self._state.through_publish_number

    @property
    def store_id(self) -> str:
        """Id of the store that the publish numbers belong to. Empty until the server has answered."""
        return self._state.store_id


class AsyncGroupStream(AsyncItemStream[Group]):
    """Complete groups in the order of their completion numbers, without end. Returned by `watch_groups`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(
        self, transport: AsyncTransport, state: GroupWatchState, timeout: float | None
    ) -> None:
        super().__init__(transport, state, timeout)
        self._state = state

    @property
    def through_completion_number(self) -> int | None:
        """Number of the last completion that has been iterated. None: the server has not answered yet."""
        return self._state.through_completion_number

    @property
    def store_id(self) -> str:
        """Id of the store that the completion numbers belong to. Empty until the server has answered."""
        return self._state.store_id


async def query(
    transport: AsyncTransport, state: ReadState[T], timeout: float | None
) -> AsyncGenerator[T, None]:
    """Iterate over the results of a query, which is requested again after a broken connection."""
    retry = Retry(timeout)
    retry.heard()
    while True:
        stream = transport.server_stream(state.method, state.request(), None)
        try:
            async for answer in stream:
                retry.heard()
                for item in state.take(answer):
                    yield item
            return
        except LightningStoreError as error:
            delay = retry.delay_after(error)
            if delay is None:
                raise
        finally:
            await stream.aclose()
        await asyncio.sleep(delay)
