"""Calls over a blocking channel of gRPC."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import grpc
from google.protobuf.message import Message
from lightningstore.client._transport.blocking_owner import BlockingOwner
from lightningstore.client._transport.channel import BlockingHolder
from lightningstore.client._transport.contact import Contact
from lightningstore.client._transport.forks import gate
from lightningstore.client._transport.turn import Turn
from lightningstore.client.connection import Endpoint
from lightningstore.client.errors import (
    CancelledCallError,
    LightningStoreError,
    UnavailableError,
    from_rpc_error,
)


class GrpcTransport:
    """Carries blocking calls over gRPC. The first call creates the channel. Threads may share it.

    Args:
        endpoint: The address and credentials of the connection.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._holder = BlockingHolder(endpoint)
        self._owner = BlockingOwner(endpoint)

    def __getstate__(self) -> dict[str, Any]:
        return {"_holder": self._holder}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._holder = state["_holder"]
        self._owner = BlockingOwner(self._holder.endpoint)

    def stub(self) -> Any:
        """Return the gRPC calls of the service as attributes, for uses that the other methods do not cover.

        Returns:
            A stub of the service.

        Raises:
            RuntimeError: The transport is closed.
        """
        return self._holder.stub()

    def _call(self, method: str, stub: Any) -> Any:
        """Return a call of the connection to the owner, given by its stub, or of the first one."""
        first = (
            self._holder.stub()
        )  # also where the owner is used: it fails if the client is closed
        return getattr(stub or first, method)

    def _ended(self, stub: Any, call: Any = None) -> None:
        """Note that a call has been answered. `call` has the trailers, if they should be looked at."""
        if not self._holder.contact.made:
            self._holder.contact.heard()
        if stub is None and call is not None:
            self._owner.learn(call.trailing_metadata())

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

    def unary(self, method: str, request: Message, timeout: float | None) -> Any:
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
        stub = self._owner.stub
        call = self._call(method, stub)
        metadata = self._holder.endpoint.metadata
        ended = None
        try:
            with gate.call():
                if stub is None and self._owner.is_due():
                    answer, ended = call.with_call(request, timeout=timeout, metadata=metadata)
                else:
                    answer = call(request, timeout=timeout, metadata=metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(stub, _error(error)) from None
        self._ended(stub, ended)
        return answer

    def begin(self, method: str, request: Message, timeout: float | None) -> PendingCall:
        """Start a call with one request and one response, which another thread can cancel.

        Args:
            method: Name of the method in the contract, such as "GetRollout".
            request: The request message.
            timeout: Deadline in seconds. None: no deadline.

        Returns:
            The call in progress.

        Raises:
            LightningStoreError: The call failed.
            RuntimeError: The transport is closed.
        """
        stub = self._owner.stub
        call = self._call(method, stub)
        try:
            future = call.future(request, timeout=timeout, metadata=self._holder.endpoint.metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(stub, _error(error)) from None
        return PendingCall(future, partial(self._ended, stub), partial(self._failed, stub))

    def server_stream(self, method: str, request: Message, timeout: float | None) -> _Answers:
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
        stub = self._owner.stub
        call = self._call(method, stub)
        try:
            answers = call(request, timeout=timeout, metadata=self._holder.endpoint.metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._failed(stub, _error(error)) from None
        return _Answers(answers, self._holder.contact, partial(self._failed, stub))

    def client_stream(
        self,
        method: str,
        requests: Iterable[Message],
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
        stub = self._owner.stub
        call = self._call(method, stub)
        fault: list[BaseException] = []
        turn = Turn(stall)
        guarded = _guarded(requests, turn, fault)
        metadata = self._holder.endpoint.metadata
        with gate.call():
            try:
                future = call.future(guarded, timeout=timeout, metadata=metadata)
            except (grpc.RpcError, ValueError) as error:
                raise self._failed(stub, _error(error)) from None
            pending = PendingCall(future, partial(self._ended, stub), partial(self._failed, stub))
            try:
                return pending.result(turn)
            except LightningStoreError:
                if fault:
                    raise fault[0] from None
                raise

    def close(self) -> None:
        """Cancel all calls, and accept no more."""
        self._owner.close()
        self._holder.close()


class PendingCall:
    """A call in progress, with one response.

    Args:
        future: The future of gRPC.
        ended: Called with the future when the response is there.
        failed: Returns the error to raise for the error of the call.
    """

    def __init__(
        self,
        future: Any,
        ended: Callable[[Any], None],
        failed: Callable[[LightningStoreError], LightningStoreError],
    ) -> None:
        self._future = future
        self._ended = ended
        self._failed = failed

    def result(self, turn: Turn | None = None) -> Any:
        """Wait for the response.

        Args:
            turn: Whose turn it is in an upload. None: it is no upload.

        Returns:
            The response message.

        Raises:
            CancelledCallError: The call was cancelled by `cancel`.
            DeadlineExceededError: The server has stalled in its turn.
            LightningStoreError: The call failed.
        """
        try:
            answer = self._result(turn)
        except grpc.FutureCancelledError:
            raise CancelledCallError("the call was cancelled by this client") from None
        except grpc.RpcError as error:
            raise self._failed(_error(error)) from None
        self._ended(self._future)
        return answer

    def _result(self, turn: Turn | None) -> Any:
        left = turn.left() if turn is not None else None
        while turn is not None and left is not None and left > 0:
            try:
                return self._future.result(left)
            except grpc.FutureTimeoutError:
                left = turn.left()
        if turn is not None and left is not None:
            self._future.cancel()
            raise turn.error
        return self._future.result()

    def when_done(self, function: Callable[[], object]) -> None:
        """Call a function when the call has ended, in a thread of gRPC.

        Args:
            function: The function, without arguments.
        """
        self._future.add_done_callback(lambda _: function())

    def cancel(self) -> None:
        """Cancel the call, from any thread."""
        self._future.cancel()


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

    def ready(self) -> None:
        self._call.initial_metadata()
        if self._call.done() and self._call.code() != grpc.StatusCode.OK:
            raise self._failed(from_rpc_error(self._call))
        self._contact.heard()

    def __iter__(self) -> _Answers:
        return self

    def __next__(self) -> Any:
        try:
            answer = next(self._call)
        except grpc.RpcError as error:
            raise self._failed(_error(error)) from None
        if not self._contact.made:
            self._contact.heard()
        return answer

    def close(self) -> None:
        self._call.cancel()


def _guarded(
    requests: Iterable[Message], turn: Turn, fault: list[BaseException]
) -> Iterator[Message]:
    """Yield requests, and note whose turn it is, and an error of the iterable: gRPC only logs it."""
    try:
        for request in requests:
            turn.of_server()
            yield request
            turn.of_caller()
    except Exception as error:
        fault.append(error)
        raise
    turn.of_server()


def _error(error: Exception) -> LightningStoreError:
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    # ValueError: the channel was closed by another thread a moment ago.
    return CancelledCallError(str(error))
