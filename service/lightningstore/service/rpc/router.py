"""Leads each call to its namespace, which its metadata names.

On a single server, calls of the default namespace get the handlers of its store, at the cost of a look at the keys of their
metadata. Calls of another namespace get a handler that opens its store if necessary, and counts them: a store in use is
not closed. Where several servers share the namespaces, a call goes on to the server that serves its namespace, once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import grpc
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.namespaces.space import Space
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc.calls import Calls, Context, Handler, refusal
from lightningstore.service.rpc.forwarding import FORWARDED_KEY, Forwarding, Peer, located
from lightningstore.service.rpc.handlers import KINDS
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.rules.namespaces import (
    DEFAULT_NAMESPACE,
    NAMESPACE_KEY,
    namespace_of,
)

Handlers = Mapping[str, Handler]
#: Returns where a call goes: to a namespace of this server, or to another server.
Locate = Callable[[], Awaitable[Space | Peer]]


class Router(grpc.GenericRpcHandler):
    """The handlers of all methods that belong to a namespace, by path."""

    def __init__(
        self,
        directory: Directory,
        calls: Calls,
        bind: Callable[[Store], Handlers],
        forwarding: Forwarding | None = None,
    ) -> None:
        """Take the namespaces, what makes the handlers of an open store, and the other servers, if there are any."""
        self._directory = directory
        self._calls = calls
        self._bind = bind
        self._forwarding = forwarding
        #: Those of the store that is always open; without one, every call is led to its namespace.
        self._default = bind(directory.default) if directory.default is not None else None

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call, None for a method that belongs to no namespace."""
        if self._default is None:
            if handler_call_details.method in KINDS:
                return self._routed(handler_call_details)
            return None
        handler = self._default.get(handler_call_details.method)
        for key, _ in handler_call_details.invocation_metadata:
            if key == NAMESPACE_KEY and handler is not None:
                return self._routed(handler_call_details)
        return handler

    def _routed(self, details: grpc.HandlerCallDetails) -> Handler:
        """Return the handler of a call of any namespace."""
        method = details.method
        streams_in, streams_out = KINDS[method]
        try:
            name = namespace_of(details.invocation_metadata)
        except StoreError as error:
            return refusal(error)
        if self._default is not None and name == DEFAULT_NAMESPACE:
            return self._default[method]
        forwarding, forwards = self._forwarding, not _is_forwarded(details)
        if forwarding is not None and forwards and (peer := forwarding.peer(name)) is not None:
            return peer.handler(method, streams_in=streams_in, streams_out=streams_out)
        locate = partial(located, self._directory, forwarding, name, forwards=forwards)
        if streams_out:
            streamed = self._streamed(locate, method)
            return grpc.unary_stream_rpc_method_handler(streamed)
        if streams_in:
            uploaded = self._answered(locate, method, "stream_unary")
            return grpc.stream_unary_rpc_method_handler(uploaded)
        unary = self._answered(locate, method, "unary_unary")
        return grpc.unary_unary_rpc_method_handler(unary)

    def _answered(self, locate: Locate, method: str, kind: str) -> Any:
        async def handle(request: Any, context: Context) -> bytes:
            answer: bytes
            try:
                place = await locate()
                if isinstance(place, Peer):
                    answer = await getattr(_forwarder(place, method), kind)(request, context)
                    return answer
                async with self._directory.use(place) as store:
                    answer = await getattr(self._bound(place, store)[method], kind)(
                        request, context
                    )
                    return answer
            except BaseException as error:
                await self._calls.fail(context, error, method)
                raise

        return handle

    def _streamed(self, locate: Locate, method: str) -> Any:
        async def handle(request: Any, context: Context) -> AsyncIterator[bytes]:
            try:
                place = await locate()
                if isinstance(place, Peer):
                    there: Any = _forwarder(place, method)
                    async with aclosing(there.unary_stream(request, context)) as answers:
                        async for answer in answers:
                            yield answer
                    return
                async with self._directory.use(place) as store:
                    here: Any = self._bound(place, store)[method]
                    async with aclosing(here.unary_stream(request, context)) as answers:
                        async for answer in answers:
                            yield answer
            except BaseException as error:
                await self._calls.fail(context, error, method)
                raise

        return handle

    def _bound(self, space: Space, store: Store) -> Handlers:
        """Return the handlers of an open store, made once each time it is opened."""
        if space.bound is None:
            space.bound = self._bind(store)
        bound: Handlers = space.bound
        return bound


def _forwarder(peer: Peer, method: str) -> Handler:
    streams_in, streams_out = KINDS[method]
    return peer.handler(method, streams_in=streams_in, streams_out=streams_out)


def _is_forwarded(details: grpc.HandlerCallDetails) -> bool:
    return any(key == FORWARDED_KEY for key, _ in details.invocation_metadata)
