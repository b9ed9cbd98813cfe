# Generated from _async/streams.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Waits, watches and queries of the blocking client. Each resumes after a broken connection."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
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
from lightningstore.client._transport.protocols import ServerStream, Transport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.errors import LightningStoreError, UnavailableError
from lightningstore.client.values import Group, Resources, Rollout

T = TypeVar("T")

#: The error of a stream that the server ended without its last message.
ENDED_EARLY = "the server ended the stream before its end"


class ItemStream(Generic[T]):
    """Items of a wait or a watch, to be iterated once. Usable as a context manager, which closes the stream.

    After a broken connection the stream resumes. UnavailableError is raised if that fails for the timeout of the
    client.

    Args:
        transport: What carries the call.
        state: What to request, and which items of a response are new.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: Transport, state: StreamState[T], timeout: float | None) -> None:
        self._transport = transport
        self._progress = state
        self._retry = Retry(timeout)
        self._retry.heard()
        self._stream: ServerStream | None = None
        self._buffer: deque[T] = deque()
        self._closed = False

    def registered(self) -> None:
        """Return once the server has registered the call: nothing later is missed.

        Calling it before iterating is optional.

        Raises:
            LightningStoreError: The call failed, for the reasons that the method returning this stream names.
        """
        while (stream := self._open()) is not None:
            try:
                stream.ready()
            except LightningStoreError as error:
                self._wait_after(stream, error)
            else:
                self._retry.heard()
                return

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        while not self._buffer:
            self._progress.passed_on_all()
            stream = self._open()
            if stream is None:
                self.close()
                raise StopIteration
            try:
                answer = stream.__next__()
            except StopIteration:
                if not self._ended():
                    self._wait_after(stream, UnavailableError(ENDED_EARLY))
            except LightningStoreError as error:
                self._wait_after(stream, error)
            else:
                self._retry.heard()
                self._buffer.extend(self._progress.take(answer))
        item = self._buffer.popleft()
        self._progress.passed_on(item)
        return item

    def close(self) -> None:
        """Cancel the call and end the stream. May be called at any time."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _open(self) -> ServerStream | None:
        """Return the call, started if it is not open; None at the end."""
        if self._stream is None and not self._ended():
            request = self._progress.request()
            if request is not None:
                self._stream = self._transport.server_stream(self._progress.method, request, None)
        if self._closed:
            # In the blocking client another thread may close the stream while the call starts.
            self.close()
        return None if self._ended() else self._stream

    def _wait_after(self, stream: ServerStream, error: LightningStoreError) -> None:
        if self._stream is stream:
            self._stream = None
        delay = self._retry.delay_after(error)
        if delay is None:
            self._closed = True
            raise error
        time.sleep(delay)

    def _ended(self) -> bool:
        return self._closed or self._progress.ended


class WaitStream(ItemStream[Rollout]):
    """Rollouts that are waited for, each once, as they finish. Returned by `wait_for_rollouts`.

    Args:
        transport: What carries the call.
        state: What is waited for.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: Transport, state: WaitState, timeout: float | None) -> None:
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

    def results(self) -> list[Rollout]:
        """Wait until the end, and return the rollouts that have not been iterated yet.

        Returns:
            The rollouts, in the order in which they finished.

        Raises:
            NotFoundError: A rollout does not exist, or a group has no rollouts.
            InvalidArgumentError: `min_count` is invalid, or nothing is waited for.
        """
        return list(self)


class WatchStream(ItemStream[Rollout]):
    """Finishes in the order of their completion numbers, without end. Returned by `watch_rollouts`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: Transport, state: WatchState, timeout: float | None) -> None:
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


class ResourceStream(ItemStream[Resources]):
    """Publications of resources in the order of their numbers, without end. Returned by `watch_resources`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(
        self, transport: Transport, state: ResourceWatchState, timeout: float | None
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


class GroupStream(ItemStream[Group]):
    """Complete groups in the order of their completion numbers, without end. Returned by `watch_groups`.

    Args:
        transport: What carries the call.
        state: Where the watch starts.
        timeout: Seconds after which failing retries end. None: never.
    """

    def __init__(self, transport: Transport, state: GroupWatchState, timeout: float | None) -> None:
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


def query(
    transport: Transport, state: ReadState[T], timeout: float | None
) -> Generator[T, None, None]:
    """Iterate over the results of a query, which is requested again after a broken connection."""
    retry = Retry(timeout)
    retry.heard()
    while True:
        stream = transport.server_stream(state.method, state.request(), None)
        try:
            for answer in stream:
                retry.heard()
                yield from state.take(answer)
            return
        except LightningStoreError as error:
            delay = retry.delay_after(error)
            if delay is None:
                raise
        finally:
            stream.close()
        time.sleep(delay)
