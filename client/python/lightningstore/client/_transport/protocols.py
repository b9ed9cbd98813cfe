"""Protocols of transports, which carry the calls of clients: over gRPC, or to a store in this process.

Methods have the names of the contract. Every error of a call is a LightningStoreError.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Protocol

from google.protobuf.message import Message


class AsyncServerStream(Protocol):
    """The responses of a call, to be iterated once."""

    async def ready(self) -> None:
        """Return once the server has registered the call: nothing later is missed.

        Raises:
            LightningStoreError: The call failed.
        """

    def __aiter__(self) -> AsyncServerStream:
        """Return the stream itself."""

    async def __anext__(self) -> Any:
        """Return the next response.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            StopAsyncIteration: The stream has ended.
        """

    async def aclose(self) -> None:
        """Cancel the call. May be called at any time."""


class AsyncTransport(Protocol):
    """Carries the calls of AsyncLightningStore."""

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

    async def close(self) -> None:
        """Cancel all calls, and accept no more."""


class ServerStream(Protocol):
    """The responses of a call, to be iterated once, in blocking code."""

    def ready(self) -> None:
        """Return once the server has registered the call: nothing later is missed.

        Raises:
            LightningStoreError: The call failed.
        """

    def __iter__(self) -> ServerStream:
        """Return the stream itself."""

    def __next__(self) -> Any:
        """Return the next response.

        Returns:
            The response message.

        Raises:
            LightningStoreError: The call failed.
            StopIteration: The stream has ended.
        """

    def close(self) -> None:
        """Cancel the call. May be called at any time, from any thread."""


class PendingCall(Protocol):
    """A call in progress, with one response."""

    def result(self) -> Any:
        """Wait for the response.

        Returns:
            The response message.

        Raises:
            CancelledCallError: The call was cancelled by `cancel`.
            LightningStoreError: The call failed.
        """

    def when_done(self, function: Callable[[], object]) -> None:
        """Call a function when the call has ended, in any thread.

        Args:
            function: The function, without arguments.
        """

    def cancel(self) -> None:
        """Cancel the call, from any thread."""


class Transport(Protocol):
    """Carries the calls of LightningStore."""

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

    def server_stream(self, method: str, request: Message, timeout: float | None) -> ServerStream:
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

    def close(self) -> None:
        """Cancel all calls, and accept no more."""
