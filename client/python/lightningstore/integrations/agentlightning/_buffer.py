"""Buffered spans of tracers: an agent does not wait for each span, later calls do."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterable, Awaitable, Callable
from contextlib import suppress
from typing import Any

from google.protobuf.message import Message
from lightningstore.client import LightningStore as BlockingStore
from lightningstore.client.exporter import SpanExporter
from lightningstore.client.otlp import ATTEMPT_ID, ROLLOUT_ID
from lightningstore.client.transports import AsyncServerStream, AsyncTransport
from opentelemetry.sdk.trace import ReadableSpan

logger = logging.getLogger(__name__)

#: The thread in which agentlightning's tracers store a span while the agent waits.
TRACER_THREAD = "otel-loop"
#: Seconds that calls wait for earlier spans if there is no other deadline.
FLUSH_TIMEOUT = 30.0


def is_tracer() -> bool:
    """Return whether a tracer of agentlightning calls, which uses only the span of the result."""
    return threading.current_thread().name == TRACER_THREAD


class SpanBuffer(SpanExporter):
    """Sends spans in batches with the client's exporter thread, and notifies coroutines."""

    def __init__(self, store: BlockingStore) -> None:
        """Create a buffer that sends with a client, which the caller closes."""
        super().__init__(store)
        self.send_in_background()

    def _reset(self) -> None:
        super()._reset()
        #: Events of callers that wait until a number of spans is settled.
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def put(self, rollout_id: str, attempt_id: str, span: ReadableSpan) -> int:
        """Queue a span; return the number of spans of its attempt from this process so far."""
        named = {ROLLOUT_ID: rollout_id, ATTEMPT_ID: attempt_id}
        # A span may name another attempt; here the argument decides.
        self._put(
            [
                item._replace(
                    origin=item.origin._replace(rollout_id=rollout_id, attempt_id=attempt_id),
                    sequence_id=0,
                )
                for item in self._encode([span], named)
            ]
        )
        return self.sent_count(rollout_id, attempt_id)

    async def settled(self, timeout: float | None) -> None:
        """Return when all spans so far are stored or dropped.

        After `timeout` seconds it logs a warning and returns.
        """
        if self._settled >= self._added:
            return
        waiter = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            target = self._added
            if self._settled >= target:
                return
            self._hurry_to = max(self._hurry_to, target)
            self._waiters.append((target, *waiter))
            self._changed.notify_all()
        try:
            # Not `wait_for`: in Python 3.11 it ignores a cancellation as the wait ends.
            async with asyncio.timeout(timeout):
                await waiter[1].wait()
        except TimeoutError:
            logger.warning("spans are not stored after %s seconds; they are tried on", timeout)
        finally:
            with self._changed:
                self._waiters = [entry for entry in self._waiters if entry[1:] != waiter]

    def _on_settled(self) -> None:
        for target, loop, event in self._waiters:
            if self._settled >= target:
                with suppress(RuntimeError):  # its loop has ended
                    loop.call_soon_threadsafe(event.set)


class InOrder:
    """Transport of asyncio calls, each after the spans that were buffered before it."""

    def __init__(self, inner: AsyncTransport, buffer: SpanBuffer) -> None:
        self._inner = inner
        self._buffer = buffer

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a unary call."""
        return await self._inner.unary(method, request, await self._turn(timeout))

    async def _turn(self, timeout: float | None) -> float | None:
        """Wait for the spans, for at most half of the time, and return the remaining time."""
        started = time.monotonic()
        await self._buffer.settled(FLUSH_TIMEOUT if timeout is None else timeout / 2)
        return None if timeout is None else timeout - (time.monotonic() - started)

    def server_stream(
        self, method: str, request: Message, timeout: float | None
    ) -> AsyncServerStream:
        """Start a call with a response stream."""
        return _LateStream(
            self._turn, lambda left: self._inner.server_stream(method, request, left), timeout
        )

    async def client_stream(
        self,
        method: str,
        requests: AsyncIterable[Message],
        timeout: float | None,
        *,
        stall: float | None = None,
    ) -> Any:
        """Make a call with a request stream."""
        left = await self._turn(timeout)
        return await self._inner.client_stream(method, requests, left, stall=stall)

    async def close(self) -> None:
        """Cancel all calls and accept no more."""
        await self._inner.close()


class _LateStream:
    """The responses of a call that starts when they are first read."""

    def __init__(
        self,
        turn: Callable[[float | None], Awaitable[float | None]],
        begin: Callable[[float | None], AsyncServerStream],
        timeout: float | None,
    ) -> None:
        self._turn = turn
        self._begin = begin
        self._timeout = timeout
        self._answers: AsyncServerStream | None = None

    async def _begun(self) -> AsyncServerStream:
        if self._answers is None:
            self._answers = self._begin(await self._turn(self._timeout))
        return self._answers

    async def ready(self) -> None:
        await (await self._begun()).ready()

    def __aiter__(self) -> _LateStream:
        return self

    async def __anext__(self) -> Any:
        return await (await self._begun()).__anext__()

    async def aclose(self) -> None:
        if self._answers is not None:
            await self._answers.aclose()
