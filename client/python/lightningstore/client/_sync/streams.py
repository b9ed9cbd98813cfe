# Generated from _async/streams.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Waits, watches and queries of the blocking client. Each goes on by itself where it broke off."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from types import TracebackType
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._calls.streams import ReadState, WaitState, WatchState
from lightningstore.client._transport.protocols import ServerStream, Transport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.errors import LightningStoreError, UnavailableError
from lightningstore.client.values import Rollout

T = TypeVar("T")

#: A stream that has no end of its own, or has not come to it.
ENDED_EARLY = "the server ended the stream before its end"


class RolloutStream:
    """Rollouts as they finish: `for rollout in stream`, once. Usable as a context manager too.

    A connection that breaks is taken up again; UnavailableError if that has not worked for the client's
    timeout.
    """

    def __init__(self, transport: Transport, method: str, timeout: float | None) -> None:
        """Take what carries the call and for how many seconds in vain it is tried."""
        self._transport = transport
        self._method = method
        self._retry = Retry(timeout)
        self._retry.heard()
        self._stream: ServerStream | None = None
        self._buffer: deque[Rollout] = deque()
        self._closed = False

    def registered(self) -> None:
        """Return once the server has taken the call up: no finish after this is missed.

        Need not be called before iterating. Raises what the call fails with, NotFoundError for instance.
        """
        while not self._ended():
            stream = self._stream or self._connect()
            if stream is None:
                return
            try:
                stream.ready()
            except LightningStoreError as error:
                self._wait_after(stream, error)
            else:
                self._retry.heard()
                return

    def __iter__(self) -> Iterator[Rollout]:
        return self

    def __next__(self) -> Rollout:
        while not self._buffer:
            self._all_passed_on()
            stream = None if self._ended() else self._stream or self._connect()
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
                self._buffer.extend(self._take(answer))
        rollout = self._buffer.popleft()
        self._passed_on(rollout)
        return rollout

    def close(self) -> None:
        """Give the call up. Harmless at any time."""
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

    def _connect(self) -> ServerStream | None:
        request = self._request()
        if request is not None:
            self._stream = self._transport.server_stream(self._method, request, None)
        return self._stream

    def _wait_after(self, stream: ServerStream, error: LightningStoreError) -> None:
        if self._stream is stream:
            self._stream = None
        delay = self._retry.delay_after(error)
        if delay is None:
            self._closed = True
            raise error
        time.sleep(delay)

    def _request(self) -> Message | None:
        raise NotImplementedError

    def _take(self, answer: Any) -> list[Rollout]:
        raise NotImplementedError

    def _passed_on(self, rollout: Rollout) -> None:
        """Note that the user has got a rollout."""

    def _all_passed_on(self) -> None:
        """Note that the user has got all that came."""

    def _ended(self) -> bool:
        return self._closed


class WaitStream(RolloutStream):
    """Rollouts waited for, each once, as they finish."""

    def __init__(self, transport: Transport, state: WaitState, timeout: float | None) -> None:
        super().__init__(transport, "WaitForRollouts", timeout)
        self._state = state

    @property
    def finished_count(self) -> int:
        """Number of rollouts that have finished so far."""
        return self._state.finished_count

    @property
    def open_rollout_ids(self) -> list[str]:
        """After the end: the ids of those still open, in the order asked for. Empty before."""
        return self._state.open_rollout_ids

    def results(self) -> list[Rollout]:
        """Return all that are still to come, in a list, when the wait is over."""
        return list(self)

    def _request(self) -> Message | None:
        return self._state.request()

    def _take(self, answer: Any) -> list[Rollout]:
        return self._state.take(answer)

    def _ended(self) -> bool:
        return self._closed or self._state.ended


class WatchStream(RolloutStream):
    """Rollouts in the order of their completion numbers. Never ends by itself."""

    def __init__(self, transport: Transport, state: WatchState, timeout: float | None) -> None:
        super().__init__(transport, "WatchRollouts", timeout)
        self._state = state
        self._last: Any = None

    @property
    def through_completion_number(self) -> int | None:
        """All finishes up to this number have been passed on. None: the server has not said yet."""
        return self._state.through_completion_number

    @property
    def store_id(self) -> str:
        """The store that the number belongs to; empty until the server has said it."""
        return self._state.store_id

    def _request(self) -> Message | None:
        return self._state.request()

    def _take(self, answer: Any) -> list[Rollout]:
        self._state.store_id = answer.store_id
        self._last = answer
        if not answer.rollouts:
            self._all_passed_on()
        return [Rollout(rollout) for rollout in answer.rollouts]

    def _passed_on(self, rollout: Rollout) -> None:
        self._state.passed_on(rollout)

    def _all_passed_on(self) -> None:
        if self._last is not None:
            self._state.passed_on_all(self._last)
            self._last = None


def query(
    transport: Transport, state: ReadState[T], timeout: float | None
) -> Generator[T, None, None]:
    """Iterate over what a query finds, asked again where it broke off."""
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
