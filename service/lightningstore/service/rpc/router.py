"""Leads each call to its namespace, which its metadata names.

Calls of the default namespace get the handlers of its store, at the cost of a look at the keys of their metadata. Calls
of another namespace get a handler that opens its store if necessary, and counts them: a store in use is not closed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import Any

import grpc
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.namespaces.space import Space
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc.calls import Calls, Context, Handler, refusal
from lightningstore.service.rules.errors import StoreError
from lightningstore.service.rules.namespaces import (
    DEFAULT_NAMESPACE,
    NAMESPACE_KEY,
    namespace_of,
)

Handlers = Mapping[str, Handler]


class Router(grpc.GenericRpcHandler):
    """The handlers of all methods that belong to a namespace, by path."""

    def __init__(
        self, directory: Directory, calls: Calls, bind: Callable[[Store], Handlers]
    ) -> None:
        """Take the namespaces, and what makes the handlers of an open store."""
        self._directory = directory
        self._calls = calls
        self._bind = bind
        self._default = bind(directory.default)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        """Return the handler of a call, None for a method that belongs to no namespace."""
        handler = self._default.get(handler_call_details.method)
        for key, _ in handler_call_details.invocation_metadata:
            if key == NAMESPACE_KEY and handler is not None:
                return self._routed(handler_call_details, handler)
        return handler

    def _routed(self, details: grpc.HandlerCallDetails, handler: Handler) -> Handler:
        """Return the handler of a call that names a namespace; `handler` is that of the default one."""
        try:
            name = namespace_of(details.invocation_metadata)
            if name == DEFAULT_NAMESPACE:
                return handler
            space = self._directory.find(name)
        except StoreError as error:
            return refusal(error)
        return self._delegated(space, details.method, handler)

    def _delegated(self, space: Space, method: str, like: Handler) -> Handler:
        """Return a handler that calls the one of an open store. It is of the same kind as `like`."""
        streams = like.request_streaming, like.response_streaming
        match streams:
            case False, False:
                return grpc.unary_unary_rpc_method_handler(
                    self._answered(space, method, "unary_unary")
                )
            case True, False:
                return grpc.stream_unary_rpc_method_handler(
                    self._answered(space, method, "stream_unary")
                )
            case _:
                return grpc.unary_stream_rpc_method_handler(self._streamed(space, method))

    def _answered(self, space: Space, method: str, kind: str) -> Any:
        async def handle(request: Any, context: Context) -> bytes:
            call: Any = None
            try:
                async with self._directory.use(space) as store:
                    call = getattr(self._bound(space, store)[method], kind)
                    answer: bytes = await call(request, context)
                    return answer
            except BaseException as error:
                # The handler has ended the call itself, except where the namespace was deleted meanwhile.
                if call is None or isinstance(error, StoreError):
                    await self._calls.fail(context, error, method)
                raise

        return handle

    def _streamed(self, space: Space, method: str) -> Any:
        async def handle(request: Any, context: Context) -> AsyncIterator[bytes]:
            handler: Any = None
            try:
                async with self._directory.use(space) as store:
                    handler = self._bound(space, store)[method]
                    async with aclosing(handler.unary_stream(request, context)) as answers:
                        async for answer in answers:
                            yield answer
            except BaseException as error:
                if handler is None or isinstance(error, StoreError):  # as above
                    await self._calls.fail(context, error, method)
                raise

        return handle

    def _bound(self, space: Space, store: Store) -> Handlers:
        """Return the handlers of an open store, made once each time it is opened."""
        if space.bound is None:
            space.bound = self._bind(store)
        bound: Handlers = space.bound
        return bound
