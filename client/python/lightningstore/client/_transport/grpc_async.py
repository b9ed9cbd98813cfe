"""Calls over a grpc.aio channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from lightningstore.client._transport.bridge import ThreadedTransport
from lightningstore.client._transport.channel import AsyncHolder, aio_is_lost
from lightningstore.client._transport.contact import Contact
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.client._transport.owner import Owner
from lightningstore.client._transport.protocols import AsyncServerStream
from lightningstore.client._transport.turn import Turn
from lightningstore.client.connection import Endpoint
from lightningstore.client.errors import (
    CancelledCallError,
    LightningStoreError,
    UnavailableError,
    from_ending,
    from_rpc_error,
)


class AsyncGrpcTransport:
    """Carries asyncio calls over gRPC. The first call creates the channel.

    Args:
        endpoint: The address and credentials of the connection.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._holder = AsyncHolder(endpoint)
        self._bridge: ThreadedTransport | None = None
        self._owner = Owner(endpoint)

    def _begin(
        self, method: str, *request: Message, timeout: float | None, stub: Any = None
    ) -> Any:
        """Start a call over the connection to the owner, given by its stub, or over the first one."""
        first = (
            self._holder.stub()
        )  # also where the owner is used: it fails if the client is closed
        call = getattr(stub or first, method)
        return call(*request, timeout=timeout, metadata=self._holder.endpoint.metadata)

    async def _ended(self, stub: Any, call: Any) -> None:
        """Note that a call has been answered."""
        if not self._holder.contact.made:
            self._holder.contact.heard()
        if stub is None and self._owner.is_due():
            self._owner.learn(await call.trailing_metadata())

    def _failed(self, stub: Any, error: LightningStoreError) -> LightningStoreError:
        """Return the error of a call. One at the owner may succeed over the first connection."""
        if stub is None:
            return self._holder.contact.explain(error)
        if isinstance(error, UnavailableError):
            self._owner.drop(stub)
        elif isinstance(error, CancelledCallError) and self._owner.has_left(stub):
            # Another call at the owner failed, which closed the connection under this one.
            return UnavailableError("the connection to the owner of the namespace was closed")
        return error

    def _cancelled(self, stub: Any, call: Any) -> BaseException:
        """Return what a CancelledError out of a call means."""
        error = _cancelled(call)
        return self._failed(stub, error) if isinstance(error, CancelledCallError) else error

    def _instead(self) -> ThreadedTransport | None:
        """Return the transport for processes in which grpc.aio does not work."""
        if not aio_is_lost():
            return None
        if self._bridge is None:
            self._bridge = ThreadedTransport(GrpcTransport(self._holder.endpoint))
        return self._bridge

    def __getstate__(self) -> dict[str, Any]:
        return {"_holder": self._holder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._holder = state["_holder"]
        self._bridge = None
        self._owner = Owner(self._holder.endpoint)

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
        if (bridge := self._instead()) is not None:
            return await bridge.unary(method, request, timeout)
        stub = self._owner.stub
        call = self._begin(method, request, timeout=timeout, stub=stub)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            raise self._failed(stub, from_rpc_error(error)) from None
        except asyncio.CancelledError:
            raise self._cancelled(stub, call) from None
        await self._ended(stub, call)
        return answer

    def server_stream(
        self, method: str, request: Message, timeout: float | None
    ) -> AsyncServerStream:
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
        if (bridge := self._instead()) is not None:
            return bridge.server_stream(method, request, timeout)
        stub = self._owner.stub
        call = self._begin(method, request, timeout=timeout, stub=stub)
        return _Answers(call, self._holder.contact, lambda error: self._failed(stub, error))

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
        if (bridge := self._instead()) is not None:
            return await bridge.client_stream(method, requests, timeout, stall=stall)
        stub = self._owner.stub
        call = self._begin(method, timeout=timeout, stub=stub)
        upload = _Upload(call, requests, stall)
        try:
            answer = await call
        except grpc.aio.AioRpcError as error:
            await upload.end()
            raise self._failed(stub, from_rpc_error(error)) from None
        except asyncio.CancelledError:
            await upload.end()
            raise self._cancelled(stub, call) from None
        await upload.end()
        await self._ended(stub, call)
        return answer

    async def close(self) -> None:
        """Cancel all calls, and accept no more."""
        if self._bridge is not None:
            await self._bridge.close()
        await self._owner.close()
        await self._holder.close()


class _Answers:
    """The responses of one call."""

    def __init__(
        self,
        call: Any,
        contact: Contact,
        failed: Callable[[LightningStoreError], LightningStoreError],
    ) -> None:
        self._call = call
        self._contact = contact
        self._failed = failed

    async def ready(self) -> None:
        try:
            await self._call.initial_metadata()
        except asyncio.CancelledError:
            raise self._cancelled() from None
        if self._call.done() and await self._call.code() != grpc.StatusCode.OK:
            raise self._failed(await _failure(self._call))
        self._contact.heard()

    def __aiter__(self) -> _Answers:
        return self

    async def __anext__(self) -> Any:
        try:
            answer = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._failed(from_rpc_error(error)) from None
        except asyncio.CancelledError:
            raise self._cancelled() from None
        if not self._contact.made:
            self._contact.heard()
        if answer is grpc.aio.EOF:
            raise StopAsyncIteration
        return answer

    def _cancelled(self) -> BaseException:
        error = _cancelled(self._call)
        return self._failed(error) if isinstance(error, CancelledCallError) else error

    async def aclose(self) -> None:
        self._call.cancel()


class _Upload:
    """Sends the requests of a call, in a task of its own: a write never returns if the channel is closed too early.

    Args:
        call: The call.
        requests: The request messages.
        stall: Seconds after which a call is cancelled whose server accepts nothing. None: no limit.
    """

    def __init__(self, call: Any, requests: AsyncIterable[Message], stall: float | None) -> None:
        self._call = call
        self._turn = Turn(stall)
        self._has_stalled = False
        self._timer: asyncio.TimerHandle | None = None
        self._sending = asyncio.create_task(self._send(requests))
        self._watch()

    async def _send(self, requests: AsyncIterable[Message]) -> None:
        call, turn = self._call, self._turn
        try:
            async for request in requests:
                turn.of_server()
                try:
                    await call.write(request)
                except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
                    return  # the call has ended, and has the reason
                turn.of_caller()
        except BaseException:
            call.cancel()
            raise
        turn.of_server()
        # This fails if the call ends at this moment. The call itself then has the error.
        with contextlib.suppress(grpc.aio.InternalError):
            await call.done_writing()

    def _watch(self) -> None:
        """Cancel the call if the server has stalled, and look again when it may have."""
        left = self._turn.left()
        if left is None:
            return
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._watch)
        else:
            self._has_stalled = True
            self._call.cancel()

    async def end(self) -> None:
        """Stop sending after the end of the call.

        Raises:
            DeadlineExceededError: The server has stalled.
            Exception: The iterable of requests has failed.
        """
        if self._timer is not None:
            self._timer.cancel()
        sending = self._sending
        if not sending.done():
            sending.cancel()
            await asyncio.wait([sending])
        if not sending.cancelled() and (error := sending.exception()) is not None:
            raise error
        if self._has_stalled and await self._call.code() == grpc.StatusCode.CANCELLED:
            raise self._turn.error


async def _failure(call: Any) -> LightningStoreError:
    return from_ending(await call.code(), await call.details(), await call.trailing_metadata())


def _cancelled(call: Any) -> BaseException:
    """Return what a CancelledError out of a call means: the task's own, or the channel was closed.

    gRPC raises the same for both. A closed channel must not look like a cancelled task.
    """
    task = asyncio.current_task()
    if call.done() and (task is None or not task.cancelling()):
        return CancelledCallError("the client was closed, or cancelled the call")
    call.cancel()
    return asyncio.CancelledError()
