"""What the clients send through: gRPC, or a store in this process. Methods go by the contract's names.

Every error is a LightningStoreError. `timeout` is in seconds until the call is given up, None for never.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Any, Protocol

from google.protobuf.message import Message


class AsyncServerStream(Protocol):
    """The answers of a server stream, to be iterated once."""

    async def ready(self) -> None:
        """Return when the server has taken the call up, so that nothing after is missed."""

    def __aiter__(self) -> AsyncServerStream:
        """Return itself."""

    async def __anext__(self) -> Any:
        """Return the next answer. Raises StopAsyncIteration at the end."""

    async def aclose(self) -> None:
        """Give the call up. Harmless at any time."""


class AsyncTransport(Protocol):
    """Carries the calls of AsyncLightningStore."""

    async def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one message each way."""

    def server_stream(
        self, method: str, request: Message, timeout: float | None
    ) -> AsyncServerStream:
        """Begin a call that is answered by a stream."""

    async def client_stream(
        self, method: str, requests: AsyncIterable[Message], timeout: float | None
    ) -> Any:
        """Make a call that sends a stream. What `requests` raises is passed on."""

    async def close(self) -> None:
        """Give up all calls, and take no more."""


class ServerStream(Protocol):
    """The answers of a server stream, to be iterated once, blocking."""

    def ready(self) -> None:
        """Return when the server has taken the call up, so that nothing after is missed."""

    def __iter__(self) -> ServerStream:
        """Return itself."""

    def __next__(self) -> Any:
        """Return the next answer. Raises StopIteration at the end."""

    def close(self) -> None:
        """Give the call up. Harmless at any time, from any thread."""


class PendingCall(Protocol):
    """A unary call that is under way."""

    def result(self) -> Any:
        """Return the answer when it is there. Raises CancelledCallError after `cancel`."""

    def when_done(self, function: Callable[[], object]) -> None:
        """Call a function, in some thread, when the answer or an error is there."""

    def cancel(self) -> None:
        """Give the call up, from any thread."""


class Transport(Protocol):
    """Carries the calls of LightningStore."""

    def unary(self, method: str, request: Message, timeout: float | None) -> Any:
        """Make a call with one message each way."""

    def begin(self, method: str, request: Message, timeout: float | None) -> PendingCall:
        """Begin a call with one message each way, which another thread may give up."""

    def server_stream(self, method: str, request: Message, timeout: float | None) -> ServerStream:
        """Begin a call that is answered by a stream."""

    def client_stream(self, method: str, requests: Iterable[Message], timeout: float | None) -> Any:
        """Make a call that sends a stream. What `requests` raises is passed on."""

    def close(self) -> None:
        """Give up all calls, and take no more."""
