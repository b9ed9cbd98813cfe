"""The spans of tracers on their way out: an agent does not wait for each of them, whoever asks later does."""

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

#: The thread in which agentlightning's tracers store a span while its agent waits.
TRACER_THREAD = "otel-loop"
#: Seconds that calls wait for the spans before them where no other deadline is set.
FLUSH_TIMEOUT = 30.0


def is_tracer() -> bool:
    """Tell whether a tracer of agentlightning calls, which looks at no answer but the span itself."""
    return threading.current_thread().name == TRACER_THREAD


class SpanBuffer(SpanExporter):
    """Sends spans in batches, by the thread of the client's exporter, and tells coroutines when it has."""

    def __init__(self, store: BlockingStore) -> None:
        """Take the client that sends; it stays the caller's to close."""
        super().__init__(store)
        self.send_in_background()

    def _reset(self) -> None:
        super()._reset()
        #: Events of callers that wait until a number of spans is settled.
        self._waiters: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def put(self, rollout_id: str, attempt_id: str, span: ReadableSpan) -> int:
        """Queue a span and return how many its attempt has had of this process, it included."""
        named = {ROLLOUT_ID: rollout_id, ATTEMPT_ID: attempt_id}
        # A span may name another attempt: here the caller decides.
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
        """Return when all spans put so far are stored, or given up; after `timeout` seconds, with a warning."""
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
            await asyncio.wait_for(waiter[1].wait(), timeout)
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
    """Carries asyncio calls, each after the spans that were put into a buffer before it."""

    def __init__(self, inner: AsyncTransport, buffer: SpanBuffer) -> None:
        self._inner = inner
        self._buffer = buffer

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one message each way."""
        return await self._inner.unary(method, request, await self._turn(timeout))

    async def _turn(self, timeout: float | None) -> float | None:
        """Wait for the spans, for half of the time at most, and return what is left of it."""
        started = time.monotonic()
        await self._buffer.settled(FLUSH_TIMEOUT if timeout is None else timeout / 2)
        return None if timeout is None else timeout - (time.monotonic() - started)

    def server_stream(
        self, method: str, request: Message, timeout: float | None
    ) -> AsyncServerStream:
        """Begin a call that is answered by a stream."""
        return _LateStream(
            self._turn, lambda left: self._inner.server_stream(method, request, left), timeout
        )

    async def client_stream(
        self, method: str, requests: AsyncIterable[Message], timeout: float | None
    ) -> Any:
        """Make a call that sends a stream."""
        return await self._inner.client_stream(method, requests, await self._turn(timeout))

    async def close(self) -> None:
        """Give up all calls, and take no more."""
        await self._inner.close()


class _LateStream:
    """The answers of a call that begins when they are first asked for."""

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
