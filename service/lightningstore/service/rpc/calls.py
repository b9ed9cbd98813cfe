"""The one wrapper of all gRPC calls: decode, call, encode, and turn errors into statuses.

Messages are decoded and encoded here and not by gRPC, for two reasons. A malformed message must be told apart from a
defect of the server. And an answer must be serialised before anything else can happen to its records.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError, Message
from lightningstore.service.rpc import density
from lightningstore.service.rpc.status import CODES, abort
from lightningstore.service.rules.errors import (
    Busy,
    MalformedMessage,
    PayloadTooLarge,
    ShuttingDown,
    StoreError,
)
from lightningstore.service.rules.pieces import UNCOUNTED_BYTES

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


#: Initial metadata of a stream that is established. A server that forwards the stream cannot tell metadata without any
#: key from none: gRPC reports both for a call that failed at once.
ESTABLISHED = (("x-lightning-established", "1"),)


class InternalError(StoreError):
    """A defect of the server. The log has its traceback, under the error id."""


def internal(error: BaseException, method: str) -> InternalError:
    """Log a defect and return the error that callers get, which names nothing but its id."""
    error_id = uuid.uuid4().hex[:12]
    logger.error("%s failed, error id %s", method, error_id, exc_info=error)
    return InternalError(f"internal error {error_id}; the server's log has more", errorId=error_id)


def check_size(data: bytes, limit: int) -> None:
    """Reject a message above the limit. gRPC's own limit lies higher: its error names no reason."""
    if len(data) > limit:
        raise PayloadTooLarge("message", len(data), limit)


def decode(message: type[Message], data: bytes, limit: int) -> Any:
    """Return the message. Raises MalformedMessage, PayloadTooLarge."""
    check_size(data, limit)
    try:
        return message.FromString(data)
    except DecodeError:
        raise MalformedMessage(message.DESCRIPTOR.full_name) from None


async def read(message: type[Message], data: bytes, limit: int) -> Any:
    """Return the message; the fields of a large one are counted first.

    Raises MalformedMessage, PayloadTooLarge, BatchTooLarge.
    """
    check_size(data, limit)
    if len(data) > UNCOUNTED_BYTES:
        await density.check(data, message.DESCRIPTOR)  # type: ignore[arg-type]
    return decode(message, data, limit)


def refusal(error: StoreError) -> Handler:
    """Return a handler that ends a call with an error. It serves methods of every kind."""

    async def refuse(_: Any, context: Context) -> AsyncIterator[bytes]:
        await abort(context, error)
        yield b""  # never: but tracing reads the answers of whatever streams

    # A bidirectional stream, whatever the method is, because then the request is not read.
    return grpc.stream_stream_rpc_method_handler(refuse)


class Streams:
    """Counts the open streams of the server and rejects those above the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0

    def __enter__(self) -> None:
        """Count a stream. Raises Busy."""
        if self._open >= self._limit:
            raise Busy(f"{self._open} streams are open, at most {self._limit} may be")
        self._open += 1

    def __exit__(self, *_: object) -> None:
        self._open -= 1


class Calls:
    """Makes gRPC handlers of functions that take and return messages."""

    def __init__(self, limit: int, streams: Streams, closing: Callable[[], bool]) -> None:
        """Take the size limit of requests in bytes, the counter of streams, and whether the server shuts down."""
        self._limit = limit
        self._streams = streams
        self._closing = closing

    def unary(
        self, method: str, request_type: type[Message], call: Callable[[Any], Awaitable[Message]]
    ) -> Handler:
        """Wrap a call that takes a message and returns one."""
        limit = self._limit

        async def answer(data: bytes, _: Context) -> bytes:
            if len(data) <= UNCOUNTED_BYTES:  # Most requests: `read` costs a coroutine.
                request = decode(request_type, data, limit)
            else:
                request = await read(request_type, data, limit)
            return (await call(request)).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(self.answered(method, answer))

    def long_poll(
        self,
        method: str,
        request_type: type[Message],
        call: Callable[[Any, float | None], Awaitable[Message]],
    ) -> Handler:
        """Wrap a call that also takes the seconds until its deadline, None without one."""
        limit = self._limit

        async def answer(data: bytes, context: Context) -> bytes:
            if len(data) <= UNCOUNTED_BYTES:
                request = decode(request_type, data, limit)
            else:
                request = await read(request_type, data, limit)
            return (await call(request, context.time_remaining())).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(self.answered(method, answer))

    def unary_bytes(
        self,
        method: str,
        call: Callable[[bytes, Context], Awaitable[Message]],
        codes: Mapping[int, int] = CODES,
    ) -> Handler:
        """Wrap a call that takes a serialised message, whose size it checks, and returns a message."""

        async def answer(data: bytes, context: Context) -> bytes:
            return (await call(data, context)).SerializeToString()

        return grpc.unary_unary_rpc_method_handler(self.answered(method, answer, codes))

    def client_stream(
        self, method: str, call: Callable[[AsyncIterator[bytes]], Awaitable[Message]]
    ) -> Handler:
        """Wrap a call that takes a stream of serialised messages and returns one message."""

        async def answer(requests: AsyncIterator[bytes], _: Context) -> bytes:
            with self._streams:
                return (await call(requests)).SerializeToString()

        return grpc.stream_unary_rpc_method_handler(self.answered(method, answer))

    def server_stream(
        self,
        method: str,
        request_type: type[Message],
        call: Callable[[Any], AsyncIterator[bytes | None]],
    ) -> Handler:
        """Wrap a call that takes a message and returns a stream, which `streamed` describes."""

        async def begin(data: bytes, _: Context) -> AsyncIterator[bytes | None]:
            return call(await read(request_type, data, self._limit))

        return grpc.unary_stream_rpc_method_handler(self.streamed(method, begin))

    def both_streams(
        self,
        method: str,
        request_type: type[Message],
        call: Callable[[AsyncIterator[Any], Context], AsyncIterator[bytes | None]],
    ) -> Handler:
        """Wrap a call that takes a stream of messages and returns a stream, which `streamed` describes."""

        async def begin(
            requests: AsyncIterator[bytes], context: Context
        ) -> AsyncIterator[bytes | None]:
            return call(self.decoded(request_type, requests), context)

        return grpc.stream_stream_rpc_method_handler(self.streamed(method, begin))

    async def decoded(
        self, request_type: type[Message], requests: AsyncIterator[bytes]
    ) -> AsyncIterator[Any]:
        """Yield the messages of a stream of requests.

        Raises MalformedMessage, PayloadTooLarge, BatchTooLarge.
        """
        # No generator expression: that would begin to read even where the call never asks.
        async for data in requests:
            yield await read(request_type, data, self._limit)

    def answered(
        self,
        method: str,
        answer: Callable[[Any, Context], Awaitable[bytes]],
        codes: Mapping[int, int] = CODES,
    ) -> Callable[[Any, Context], Awaitable[bytes]]:
        """Return a handler with one answer, whose errors end the call with their status."""

        async def handle(request: Any, context: Context) -> bytes:
            try:
                return await answer(request, context)
            except BaseException as error:
                await self.fail(context, error, method, codes)
                raise

        return handle

    def streamed(
        self,
        method: str,
        begin: Callable[[Any, Context], Awaitable[AsyncIterator[bytes | None]]],
    ) -> Callable[[Any, Context], AsyncIterator[bytes]]:
        """Return a handler with a stream of answers, whose errors end the call with their status.

        `begin` returns an async generator, which yields serialised messages, and None once the client can rely on
        missing nothing from here on.
        """

        async def handle(request: Any, context: Context) -> AsyncIterator[bytes]:
            try:
                with self._streams:
                    answers = await begin(request, context)
                    async with aclosing(answers):  # type: ignore[type-var]
                        async for answer in answers:
                            if answer is None:
                                await context.send_initial_metadata(ESTABLISHED)
                            else:
                                yield answer
            except BaseException as error:
                await self.fail(context, error, method)
                raise

        return handle

    async def fail(
        self,
        context: Context,
        error: BaseException,
        method: str,
        codes: Mapping[int, int] = CODES,
    ) -> None:
        """End a call with the status of an error. Always raises."""
        if isinstance(error, StoreError):
            await abort(context, error, codes)
        if isinstance(error, grpc.aio.AbortError | GeneratorExit):
            raise error  # The call has ended already.
        if isinstance(error, asyncio.CancelledError):
            # A status for a client that has cancelled does not leave gRPC, about one time in six.
            if not self._closing() or context.cancelled() or context.done():
                raise error
            # The server has cancelled the call: without a status the client would not know why.
            await abort(context, ShuttingDown())
        await abort(context, internal(error, method))
