"""The asyncio client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._async import streams
from lightningstore.client._async.datasets import AsyncDatasetCalls
from lightningstore.client._async.streams import AsyncWaitStream, AsyncWatchStream
from lightningstore.client._calls.call import Call
from lightningstore.client._calls.streams import QueryState, TripletState, WaitState, WatchState
from lightningstore.client._calls.traces import ingest_messages, ingest_result, triplet_parts
from lightningstore.client._calls.uploads import async_is_repeatable, async_requests
from lightningstore.client._transport.grpc_async import AsyncGrpcTransport
from lightningstore.client._transport.methods import repeats_are_harmless
from lightningstore.client._transport.protocols import AsyncTransport
from lightningstore.client._transport.retries import Retry
from lightningstore.client.connection import DEFAULT_TIMEOUT, ConnectionOptions, endpoint
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.values import AttemptTriplets, IngestResult, Span
from lightningstore.v1.span_pb2 import QuerySpansRequest, SpanBatch
from lightningstore.v1.triplet_pb2 import ListTripletsRequest

if TYPE_CHECKING:
    from typing_extensions import Unpack

Item = TypeVar("Item")
T = TypeVar("T")


class AsyncLightningStore(AsyncDatasetCalls):
    """A store behind gRPC, for asyncio.

    Connects with the first call, and again by itself whenever the connection breaks. What is safe to
    repeat is retried with growing, varied delays until the call's deadline; every write is made safe by the
    ids that the client puts into it. What goes wrong is a LightningStoreError.

    After a fork, after pickling and in another event loop it opens a connection of its own. Durations are
    seconds, times datetimes with a time zone. Use it as a context manager or call `close`.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Take the address, "host:port", or "https://host:port" for TLS.

        Unset: LIGHTNINGSTORE_ADDRESS, or 127.0.0.1:4747. `timeout`: deadline of a call in seconds, its retries included; None: none. `metadata`: gRPC
        metadata sent with every call, keys in lower case. `token`: what `lightningstore token new` printed
        (unset: LIGHTNINGSTORE_TOKEN; "": none). `tls_ca`: file of the authorities that may have signed the
        server's certificate, in PEM, instead of the well-known ones; `tls_cert` and `tls_key`: the client's
        own certificate, for mutual TLS (unset: LIGHTNINGSTORE_TLS_CA, _CERT, _KEY). Any of them means TLS.
        `allow_insecure_token`: send the token over plain text too.

        Raises ValueError for a bad address, for files that do not fit, and for a token that would go over
        plain text; OSError for files that cannot be read.
        """
        self._timeout = timeout
        server = endpoint(address, **connection)
        self._address = server.address
        self._transport: AsyncTransport = AsyncGrpcTransport(server)

    @classmethod
    def over(
        cls, transport: AsyncTransport, *, timeout: float | None = DEFAULT_TIMEOUT
    ) -> AsyncLightningStore:
        """Return a client that sends through a transport: how `open_store` works."""
        store = cls.__new__(cls)
        store._timeout = timeout
        store._address = ""
        store._transport = transport
        return store

    def with_timeout(self, timeout: float | None) -> AsyncLightningStore:
        """Return a client with another deadline, in seconds, over the same connection.

        Closing one closes both.
        """
        store = type(self).over(self._transport, timeout=timeout)
        store._address = self._address
        return store

    @property
    def address(self) -> str:
        """Address of the server, "host:port". Empty for a client over a transport of the caller's own."""
        return self._address

    async def close(self) -> None:
        """Close the connection; calls that run fail. Harmless to repeat."""
        await self._transport.close()

    async def __aenter__(self) -> AsyncLightningStore:  # noqa: PYI034
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def call(self, method: str, request: Message) -> Any:
        """Make a unary call of the contract with a message as it is, and return the answer's message.

        `method` is its name there, "GetRollout" for instance. Repeated on a lost connection only where
        the request makes that harmless. For what the other methods do not show.
        """
        return await self._send(Call(method, request, lambda answer: answer))

    def wait_for_rollouts(
        self,
        rollout_ids: Iterable[str] = (),
        *,
        group_ids: Iterable[str] = (),
        min_count: int | None = None,
        timeout: float | None = None,
    ) -> AsyncWaitStream:
        """Iterate over rollouts as they finish, each once; those that have finished come first.

        Waits for all of `rollout_ids` and of the rollouts that are in `group_ids` now, until all of them,
        or `min_count`, have finished or `timeout` seconds have passed (0: only what has finished already;
        None: no limit). After the end the stream knows `finished_count` and `open_rollout_ids`;
        `await stream.results()` gives a list; `await stream.registered()` returns once nothing can be
        missed.

        While iterating raises NotFoundError for an unknown rollout or an empty group, and
        InvalidArgumentError.
        """
        state = WaitState(rollout_ids, group_ids, min_count, timeout)
        return AsyncWaitStream(self._transport, state, self._timeout)

    def watch_rollouts(
        self, after_completion_number: int | None = None, *, store_id: str = ""
    ) -> AsyncWatchStream:
        """Iterate over the finishes of all rollouts, in the order of their completion numbers, without end.

        `after_completion_number`: the last one already seen; 0: from the beginning; None: from now on. The
        stream's `through_completion_number` and `store_id` are what to begin with the next time.

        While iterating raises OutOfRangeError for a number beyond the last one, and
        FailedPreconditionError if `store_id` is another store's.
        """
        state = WatchState(after_completion_number, store_id)
        return AsyncWatchStream(self._transport, state, self._timeout)

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

    async def _ingest(
        self, batches: Iterable[SpanBatch] | AsyncIterable[SpanBatch]
    ) -> IngestResult:
        return await self._upload("IngestSpans", batches, ingest_messages, ingest_result)

    async def _upload(
        self,
        method: str,
        items: Iterable[Item] | AsyncIterable[Item],
        messages: Callable[[Item], Iterable[Message]],
        shape: Callable[[Any], T],
    ) -> T:
        again = async_is_repeatable(items)
        retry = Retry(self._timeout)
        retry.heard()
        while True:
            try:
                answer = await self._transport.client_stream(
                    method, async_requests(items, messages), None
                )
            except LightningStoreError as error:
                delay = retry.delay_after(error) if again else None
                if delay is None:
                    raise
            else:
                return shape(answer)
            await asyncio.sleep(delay)

    def _query(self, request: QuerySpansRequest) -> AsyncIterator[Span]:
        return streams.query(self._transport, QueryState(request), self._timeout)

    async def _triplets(self, request: ListTripletsRequest) -> AsyncIterator[AttemptTriplets]:
        for part in triplet_parts(request):
            state = TripletState(part)
            async with aclosing(streams.query(self._transport, state, self._timeout)) as found:
                async for attempt in found:
                    yield attempt
