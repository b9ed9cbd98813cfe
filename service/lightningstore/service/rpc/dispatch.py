"""Calls that do not arrive by gRPC: they pass the interceptors and handlers of the gRPC server, as bytes.

So tokens, roles, namespaces, limits, metrics, errors and forwarding are those of gRPC, because they are the same code.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import grpc
import grpc.aio
from google.protobuf import any_pb2
from google.rpc import status_pb2
from lightningstore.service.rpc.calls import Handler

#: What a call that fails raises, once its context holds the status.
CallFailed = grpc.aio.AbortError

Metadata: TypeAlias = tuple[tuple[str, Any], ...]
_DETAILS_KEY = "grpc-status-details-bin"


class CallDetails(NamedTuple):
    """What interceptors and handlers are asked with, as gRPC does it."""

    method: str
    invocation_metadata: Metadata


class Dispatcher:
    """Finds the handlers of calls."""

    def __init__(
        self,
        interceptors: Sequence[grpc.aio.ServerInterceptor],
        handlers: Sequence[grpc.GenericRpcHandler],
    ) -> None:
        """Take those of the gRPC server; the first interceptor is the outermost one."""
        self._handlers = tuple(handlers)
        find: Callable[[Any], Awaitable[Any]] = self._query
        for interceptor in reversed(interceptors):
            find = partial(interceptor.intercept_service, find)
        self._find = find

    async def find(self, method: str, metadata: Metadata) -> Handler | None:
        """Return the handler of a call, None for an unknown method."""
        handler: Handler | None = await self._find(CallDetails(method, metadata))
        return handler

    async def _query(self, details: Any) -> Handler | None:
        for handlers in self._handlers:
            handler: Handler | None = handlers.service(details)
            if handler is not None:
                return handler
        return None


class CallContext:
    """The part of grpc.aio.ServicerContext that interceptors and handlers use."""

    def __init__(
        self,
        metadata: Metadata,
        peer: str,
        *,
        is_gone: Callable[[], bool] = lambda: False,
        begin: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Describe a call.

        Args:
            metadata: The metadata of the call; keys in lower case.
            peer: Who calls, for logs.
            is_gone: Whether the client has disconnected.
            begin: Called once a stream is established.
        """
        self._metadata = metadata
        self._peer = peer
        #: Time of the event loop at which the call ends; None: never.
        self.deadline: float | None = None
        self._is_gone = is_gone
        self._begin = begin
        self._code: grpc.StatusCode | None = None
        self._details = ""
        #: Metadata that follows the answer.
        self.trailers: Metadata = ()

    def invocation_metadata(self) -> Metadata:
        """Return the metadata of the call."""
        return self._metadata

    def peer(self) -> str:
        """Return who calls."""
        return self._peer

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline, None without one."""
        if self.deadline is None:
            return None
        return max(0.0, self.deadline - asyncio.get_running_loop().time())

    def cancelled(self) -> bool:
        """Return whether the client no longer waits for an answer."""
        return self._is_gone() or self.time_remaining() == 0

    def done(self) -> bool:
        """Return whether the call has ended."""
        return self.cancelled()

    async def send_initial_metadata(self, _: Any) -> None:
        """Let the client know that the stream is established."""
        if self._begin is not None:
            await self._begin()

    def set_trailing_metadata(self, trailers: Any) -> None:
        """Set the metadata that follows the answer."""
        self.trailers = tuple(trailers)

    def trailing_metadata(self) -> Metadata:
        """Return the metadata that follows the answer."""
        return self.trailers

    def set_code(self, code: grpc.StatusCode) -> None:
        """Set the status code."""
        self._code = code

    def code(self) -> grpc.StatusCode | None:
        """Return the status code, None if nothing has set one."""
        return self._code

    def set_details(self, details: str) -> None:
        """Set the text of the status."""
        self._details = details

    def details(self) -> str:
        """Return the text of the status."""
        return self._details

    async def abort(
        self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()
    ) -> None:
        """End the call with a status. Always raises."""
        self._code, self._details = code, details
        self.trailers = tuple(trailing_metadata)
        raise grpc.aio.AbortError

    def status(self) -> status_pb2.Status:
        """Return the status that the call has ended with, and its details."""
        number = (self._code or grpc.StatusCode.UNKNOWN).value[0]
        details: list[any_pb2.Any] = []
        for key, value in self.trailers:
            if key == _DETAILS_KEY:
                details.extend(status_pb2.Status.FromString(value).details)
        return status_pb2.Status(code=number, message=self._details, details=details)


async def refused(handler: Handler, context: CallContext) -> None:
    """Call a handler that only rejects: a bidirectional stream, whatever the method is. Raises CallFailed."""
    nothing: AsyncIterator[bytes] = _nothing()
    answer: Any = handler
    async for _ in answer.stream_stream(nothing, context):
        pass


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
