"""What every handler is wrapped in, once, at registration: decode, call, encode, and errors.

Messages are decoded and encoded here and not by gRPC: bytes that are no message must be told apart from a
defect, and answers are serialised before anything else can happen to their records.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from lightningstore.service.rpc import density
from lightningstore.service.rpc.status import abort
from lightningstore.service.rules.errors import (
    Busy,
    MalformedMessage,
    PayloadTooLarge,
    ShuttingDown,
    StoreError,
)

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
#: Tells whether the server is going down.
Closing = Callable[[], bool]


class InternalError(StoreError):
    """A defect of the server. What it was is in the log, under the error id."""


def check_size(data: bytes, limit: int) -> None:
    """Refuse a message above the limit. gRPC's own limit lies higher: its refusal names no reason."""
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
    """Return the message; a large one is counted first. Raises MalformedMessage, PayloadTooLarge, BatchTooLarge."""
    check_size(data, limit)
    if len(data) > density.LARGE_BYTES:
        await density.check(data, message.DESCRIPTOR)  # type: ignore[arg-type]
    return decode(message, data, limit)


async def fail(context: Context, error: BaseException, method: str, *, closing: bool) -> None:
    """End a call with what went wrong; `closing` says that the server is going down. Always raises."""
    if isinstance(error, StoreError):
        await abort(context, error)
    if isinstance(error, asyncio.CancelledError):
        # Where it was the client who went, a status would never leave gRPC, about one time in six.
        if not closing or context.cancelled() or context.done():
            raise error
        # Not the client's doing: a call that just vanished would leave it without a status.
        await abort(context, ShuttingDown())
    await abort(context, internal(error, method))


def internal(error: BaseException, method: str) -> InternalError:
    """Return what callers are told of a defect, which is logged."""
    error_id = uuid.uuid4().hex[:12]
    logger.error("%s failed, error id %s", method, error_id, exc_info=error)
    return InternalError(f"internal error {error_id}; the server's log has more", errorId=error_id)


def unary(
    method: str,
    request_type: type[Message],
    call: Callable[..., Awaitable[Message]],
    limit: int,
    closing: Closing,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a call that takes a message, of at most `limit` bytes, and returns one."""

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            return (await call(await read(request_type, data, limit))).SerializeToString()
        except grpc.aio.AbortError:
            raise
        except BaseException as error:
            await fail(context, error, method, closing=closing())
            raise

    return grpc.unary_unary_rpc_method_handler(handle)


def unary_bytes(
    method: str, call: Callable[[bytes], Awaitable[Message]], closing: Closing
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a call that takes a serialised message, whose size it checks, and returns a message."""

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            return (await call(data)).SerializeToString()
        except grpc.aio.AbortError:
            raise
        except BaseException as error:
            await fail(context, error, method, closing=closing())
            raise

    return grpc.unary_unary_rpc_method_handler(handle)


def long_poll(
    method: str,
    request_type: type[Message],
    call: Callable[..., Awaitable[Message]],
    limit: int,
    closing: Closing,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a call that wants to know how much time its caller leaves it."""

    async def handle(data: bytes, context: Context) -> bytes:
        try:
            request = await read(request_type, data, limit)
            return (await call(request, context.time_remaining())).SerializeToString()
        except grpc.aio.AbortError:
            raise
        except BaseException as error:
            await fail(context, error, method, closing=closing())
            raise

    return grpc.unary_unary_rpc_method_handler(handle)


def server_stream(
    method: str,
    request_type: type[Message],
    call: Callable[..., AsyncIterator[bytes | None]],
    streams: Streams,
    limit: int,
    closing: Closing,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a call that yields None once it stands, and then serialised messages."""

    async def handle(data: bytes, context: Context) -> AsyncIterator[bytes]:
        try:
            with streams:
                request = await read(request_type, data, limit)
                async with aclosing(call(request)) as answers:  # type: ignore[type-var]
                    async for answer in answers:
                        if answer is None:  # tells the client that from here on it misses nothing
                            await context.send_initial_metadata(())
                        else:
                            yield answer
        except (grpc.aio.AbortError, GeneratorExit):
            raise
        except BaseException as error:
            await fail(context, error, method, closing=closing())
            raise

    return grpc.unary_stream_rpc_method_handler(handle)


def client_stream(
    method: str,
    call: Callable[[AsyncIterator[bytes]], Awaitable[Message]],
    streams: Streams,
    closing: Closing,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Wrap a call that takes a stream of serialised messages and returns one message."""

    async def handle(requests: AsyncIterator[bytes], context: Context) -> bytes:
        try:
            with streams:
                return (await call(requests)).SerializeToString()
        except grpc.aio.AbortError:
            raise
        except BaseException as error:
            await fail(context, error, method, closing=closing())
            raise

    return grpc.stream_unary_rpc_method_handler(handle)


class Streams:
    """Counts the open streams of the server and refuses those above the limit."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._open = 0

    def __enter__(self) -> None:
        """Count a stream. Raises Busy."""
        if self._open >= self._most:
            raise Busy(f"{self._open} streams are open, at most {self._most} may be")
        self._open += 1

    def __exit__(self, *_: object) -> None:
        """Forget a stream."""
        self._open -= 1
