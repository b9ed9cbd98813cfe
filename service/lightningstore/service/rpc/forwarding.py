"""Forwards calls to the server that owns their namespace, as bytes, which nothing here parses.

A call is forwarded at most once: the owner answers a forwarded call itself or not at all, so two servers that disagree
about the owner cannot send a call back and forth. Answers carry the owner's address in a trailer, and a client that
knows it calls the owner directly.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.namespaces.placement import Placement
from lightningstore.service.namespaces.space import Space
from lightningstore.service.rpc.calls import ESTABLISHED, Context, Handler
from lightningstore.service.rpc.status import abort
from lightningstore.service.rules.errors import NotOwner, ShuttingDown, StoreError
from lightningstore.service.rules.namespaces import namespace_of
from lightningstore.v1.error_reason_pb2 import ERROR_REASON_FIELD_INVALID

logger = logging.getLogger(__name__)

#: Metadata of a forwarded call, with the address of the server that forwards it.
FORWARDED_KEY = "x-lightning-forwarded-by"
#: Trailer of the answer to a forwarded call, with the address of the owner.
OWNER_KEY = "x-lightning-owner"
#: Trailer with the google.rpc.Status of an error. Every error of a server has it, those of a broken connection lack it.
_DETAILS_KEY = "grpc-status-details-bin"
#: How the keys start that say who calls, in which namespace and for which attempt.
_OF_CALLERS = ("authorization", "x-lightning-", "agentlightning.")
_GRPC_KEYS = frozenset(("user-agent", "content-type", "te"))
#: Keys and values that gRPC sends. It accepts others from clients, and fails a call that is to send them.
_SENT_KEY = re.compile(r"[0-9a-z_.-]+")
_SENT_TEXT = re.compile(r"[\x20-\x7e]*")

Metadata: TypeAlias = tuple[tuple[str, Any], ...]

#: How the names of methods start whose calls wait until something happens.
_WAITING = ("Dequeue", "Wait", "Watch")
#: Codes after which a repeat of the call may succeed.
_TRANSIENT = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)


class PeerError(StoreError):
    """A peer rejects a call that this server made for a part of a request."""

    reason = ERROR_REASON_FIELD_INVALID


class Peer:
    """Another server, and the calls that are being forwarded to it."""

    def __init__(self, address: str, own_address: str, channel: grpc.aio.Channel) -> None:
        """Take an open channel, which `close` closes.

        Args:
            address: The address at which the peer reaches clients, as host:port.
            own_address: The address of this server.
            channel: A channel to the peer.
        """
        self.address = address
        self._channel = channel
        self._mark = (FORWARDED_KEY, own_address)
        self._trailers = ((OWNER_KEY, address),)
        self._handlers: dict[str, Handler] = {}
        #: Calls to the peer that have not ended, and the namespace that each concerns.
        self.calls: dict[Any, str] = {}
        #: Those of them that wait.
        self._waiting: set[Any] = set()
        #: Those that this server has ended, and the error that they end with.
        self._ended: dict[Any, StoreError] = {}

    def handler(self, method: str, *, streams_in: bool, streams_out: bool) -> Handler:
        """Return the handler that forwards a method, given as "/package.Service/Method"."""
        handler = self._handlers.get(method)
        if handler is None:
            handler = self._handlers[method] = self._made(
                method, streams_in=streams_in, streams_out=streams_out
            )
        return handler

    async def forward(self, method: str, request: bytes, context: Context, namespace: str) -> bytes:
        """Forward a unary call about a namespace that its metadata need not name. Raises what ends the call."""
        begin: Any = self._channel.unary_unary(method)
        call = self._begin(begin, request, context, waits=False, namespace=namespace)
        return await self._answer(call, context)

    async def call(
        self, method: str, request: bytes, metadata: Iterable[tuple[str, Any]], timeout: float
    ) -> bytes:
        """Make a unary call of this server's own in a namespace that the peer owns.

        Args:
            method: The method as "/package.Service/Method".
            request: The serialised request.
            metadata: The metadata of the call; it names the namespace and has the token of the caller.
            timeout: Seconds until the deadline.

        Raises:
            NotOwner: The peer does not answer, or does not own the namespace.
            PeerError: The peer rejects the call.
        """
        # Most headers of an HTTP request are not meant for the owner.
        passed = tuple(pair for pair in _passed(metadata) if pair[0].startswith(_OF_CALLERS))
        namespace = namespace_of(passed)
        begin: Any = self._channel.unary_unary(method)
        call = begin(request, metadata=(*passed, self._mark), timeout=timeout)
        self.calls[call] = namespace
        try:
            answer: bytes = await call
        except asyncio.CancelledError:
            if call not in self._ended:
                call.cancel()
                raise
            raise self._ended[call] from None
        except grpc.aio.AioRpcError as error:
            if error.code() in _TRANSIENT:
                raise NotOwner(namespace, self.address) from None
            raise PeerError(f"{self.address}: {error.details()}") from None
        finally:
            self._forget(call)
        return answer

    def end_calls(self, namespace: str | None = None) -> None:
        """End the calls that are being forwarded, in one namespace or in all, with NotOwner.

        A server that no longer owns the namespace may be stopped rather than gone: it would neither answer these calls
        nor end them.
        """
        for call, where in tuple(self.calls.items()):
            if namespace is None or where == namespace:
                self._end(call, NotOwner(where, ""))

    def stop_waiting(self) -> None:
        """End the calls that wait, with ShuttingDown."""
        for call in tuple(self._waiting):
            self._end(call, ShuttingDown())

    def _end(self, call: Any, error: StoreError) -> None:
        self._ended[call] = error
        call.cancel()

    async def close(self) -> None:
        """End all calls that are being forwarded, and close the channel."""
        self.end_calls()
        await self._channel.close()

    def _made(self, method: str, *, streams_in: bool, streams_out: bool) -> Handler:
        channel, waits = self._channel, method.rpartition("/")[2].startswith(_WAITING)
        match streams_in, streams_out:
            case False, False:
                unary = self._answered(channel.unary_unary(method), waits=waits)
                return grpc.unary_unary_rpc_method_handler(unary)
            case True, False:
                uploading = self._answered(channel.stream_unary(method), waits=waits)
                return grpc.stream_unary_rpc_method_handler(uploading)
            case False, True:
                streaming = self._streamed(channel.unary_stream(method), waits=waits)
                return grpc.unary_stream_rpc_method_handler(streaming)
            case _:
                both = self._streamed(channel.stream_stream(method), waits=waits)
                return grpc.stream_stream_rpc_method_handler(both)

    def _answered(self, forward: Any, *, waits: bool) -> Callable[[Any, Context], Awaitable[bytes]]:
        """Return a handler with one answer. `forward` starts the call at the peer."""

        async def handle(request: Any, context: Context) -> bytes:
            return await self._answer(self._begin(forward, request, context, waits=waits), context)

        return handle

    async def _answer(self, call: Any, context: Context) -> bytes:
        """Return the answer of a call that has been forwarded."""
        try:
            answer: bytes = await call
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            await self._fail(call, context, error)
            raise
        finally:
            self._forget(call)
        context.set_trailing_metadata(self._trailers)
        return answer

    def _streamed(
        self, forward: Any, *, waits: bool
    ) -> Callable[[Any, Context], AsyncIterator[bytes]]:
        """Return a handler with a stream of answers. `forward` starts the call at the peer."""

        async def handle(request: Any, context: Context) -> AsyncIterator[bytes]:
            call = self._begin(forward, request, context, waits=waits)
            try:
                if ESTABLISHED[0] in tuple(await call.initial_metadata()):
                    await context.send_initial_metadata(ESTABLISHED)
                async for answer in call:
                    yield answer
                await call.code()
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
                await self._fail(call, context, error)
                raise
            finally:
                self._forget(call)
                call.cancel()  # No-op unless the client has gone.
            context.set_trailing_metadata(self._trailers)

        return handle

    def _begin(
        self, forward: Any, request: Any, context: Context, *, waits: bool, namespace: str = ""
    ) -> Any:
        """Start a call at the peer. `namespace`: the one that it concerns; "": that of its metadata."""
        metadata = _passed(context.invocation_metadata())
        call = forward(request, metadata=(*metadata, self._mark), timeout=context.time_remaining())
        self.calls[call] = namespace or namespace_of(metadata)
        if waits:
            self._waiting.add(call)
        return call

    def _forget(self, call: Any) -> None:
        del self.calls[call]
        self._waiting.discard(call)
        self._ended.pop(call, None)

    async def _fail(self, call: Any, context: Context, error: BaseException) -> None:
        """End a call as the peer ended it. Always raises."""
        if context.cancelled() or context.done():
            call.cancel()
            raise error
        if call in self._ended:
            await abort(context, self._ended[call])
        if not isinstance(error, grpc.aio.AioRpcError):
            call.cancel()
            raise error  # This server is shutting down and has cancelled the call.
        trailers: Metadata = tuple(error.trailing_metadata() or ())
        if error.code() == grpc.StatusCode.UNAVAILABLE and not any(
            key == _DETAILS_KEY for key, _ in trailers
        ):
            logger.debug("call to %s failed: %s", self.address, error.details())
            await abort(context, NotOwner(self.calls[call], self.address))
        await context.abort(
            error.code(), error.details() or "", (*_passed(trailers), *self._trailers)
        )


class Forwarding:
    """The other servers, and which of them calls of a namespace go to."""

    def __init__(
        self,
        placement: Placement,
        own_address: str,
        connect: Callable[[str], grpc.aio.Channel],
    ) -> None:
        """Take what knows the owners, the address of this server, and what opens a channel to an address."""
        self._placement = placement
        self._own_address = own_address
        self._connect = connect
        self._peers: dict[str, Peer] = {}

    def peer(self, namespace: str) -> Peer | None:
        """Return the server that calls of a namespace go to, None for this one."""
        address = self._placement.elsewhere(namespace)
        if not address:
            return None
        peer = self._peers.get(address)
        if peer is None:
            peer = Peer(address, self._own_address, self._connect(address))
            self._peers[address] = peer
        return peer

    async def refresh(self) -> None:
        """Look at all namespaces that the servers share. Raises StorageFailed."""
        await self._placement.refresh()

    async def discover(self, name: str) -> None:
        """Look for a namespace that this server does not know. Raises StorageFailed."""
        await self._placement.discover(name)

    def end_misplaced(self, may_answer: Callable[[str, str], bool]) -> None:
        """End the calls that are being forwarded to servers which will not answer them, with NotOwner.

        Args:
            may_answer: Returns whether the server at an address, the second argument, may still answer a call of the
                namespace that the first one names.
        """
        for address, peer in self._peers.items():
            for namespace in set(peer.calls.values()):
                if not may_answer(namespace, address):
                    peer.end_calls(namespace)

    def stop_waiting(self) -> None:
        """End the calls that wait at other servers, with ShuttingDown: this server is shutting down."""
        for peer in self._peers.values():
            peer.stop_waiting()

    async def close(self) -> None:
        """End all calls that are being forwarded, and close the channels."""
        peers, self._peers = self._peers, {}
        await asyncio.gather(*[peer.close() for peer in peers.values()])


async def located(
    directory: Directory, forwarding: Forwarding | None, name: str, *, forwards: bool = True
) -> Space | Peer:
    """Return a namespace of this server, or the server that serves it.

    With other servers the namespace has been opened, because only that shows whether what this server knows is up to
    date. If it is not, this server looks at what they share and tries again.

    Args:
        directory: The namespaces of this server.
        forwarding: The other servers; None: there are none.
        name: Name of the namespace.
        forwards: Whether another server may be returned; not for a call that another server has forwarded.

    Raises:
        NamespaceNotFound, NotOwner, StorageFailed
    """
    if forwarding is None:
        return directory.find(name)
    for is_last in (False, False, True):
        if forwards and (peer := forwarding.peer(name)) is not None:
            return peer
        if directory.known(name) is None and not is_last:
            await forwarding.discover(name)  # another server may have created it a moment ago
            if directory.known(name) is None:
                break
            continue
        try:
            space = directory.find(name)
            await directory.opened(space)
        except NotOwner:
            if is_last:
                raise
            await forwarding.refresh()
        else:
            return space
    return directory.find(name)


def _passed(metadata: Any) -> Metadata:
    """Return the metadata that is passed on: all but what gRPC writes itself, and what it does not send."""
    return tuple(
        (key, value)
        for key, value in metadata or ()
        if (key == _DETAILS_KEY or not _is_grpc(key)) and _is_sent(key, value)
    )


def _is_grpc(key: str) -> bool:
    return key.startswith(("grpc-", ":")) or key in _GRPC_KEYS


def _is_sent(key: str, value: Any) -> bool:
    if not _SENT_KEY.fullmatch(key):
        return False
    if key.endswith("-bin"):
        return isinstance(value, bytes)
    return isinstance(value, str) and _SENT_TEXT.fullmatch(value) is not None
