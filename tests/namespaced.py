"""Calls of all services of the contract over a raw channel, each in any namespace."""

from __future__ import annotations

from typing import Any

import grpc.aio
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from lightningstore.service.cluster import calls as servers
from lightningstore.service.namespaces.directory import Common, Directory
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import handlers, otlp
from lightningstore.service.rules.limits import Retention
from lightningstore.service.storage.catalog import MemoryCatalog
from lightningstore.v1.namespace_pb2 import (
    CreateNamespaceRequest,
    DeleteNamespaceRequest,
    Namespace,
)

METHODS: dict[str, MethodDescriptor] = {
    method.name: method
    for service in (handlers.SERVICE, handlers.NAMESPACES, servers.SERVICE)
    for method in service.methods
}


def metadata(namespace: str) -> tuple[tuple[str, str], ...]:
    """Return what names a namespace; nothing for ""."""
    return (("x-lightning-namespace", namespace),) if namespace else ()


class Caller:
    """Makes calls over a channel."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def begin(
        self,
        name: str,
        request: Any,
        namespace: str = "",
        timeout: float = 20,
        more: tuple[tuple[str, str], ...] = (),
    ) -> Any:
        """Start a call of any kind, with `more` metadata; a stream of requests has this one."""
        method = METHODS[name]
        kind = ("stream" if method.client_streaming else "unary") + (
            "_stream" if method.server_streaming else "_unary"
        )
        start = getattr(self._channel, kind)(
            handlers.path_of(method),
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        sent = iter([request]) if method.client_streaming else request
        return start(sent, metadata=(*metadata(namespace), *more), timeout=timeout)

    async def call(
        self,
        name: str,
        request: Any,
        namespace: str = "",
        timeout: float = 20,
        more: tuple[tuple[str, str], ...] = (),
    ) -> Any:
        """Make a call; returns its answer, or the list of its answers if they are a stream."""
        call = self.begin(name, request, namespace, timeout, more)
        if METHODS[name].server_streaming:
            return [answer async for answer in call]
        return await call

    async def create(self, name: str, **fields: Any) -> Namespace:
        """Create a namespace."""
        request = CreateNamespaceRequest(namespace=Namespace(name=name, **fields))
        created: Namespace = (await self.call("CreateNamespace", request)).namespace
        return created

    async def delete(self, name: str, **options: bool) -> None:
        """Delete a namespace."""
        await self.call("DeleteNamespace", DeleteNamespaceRequest(name=name, **options))


def elsewhere(store: Store) -> otlp.Elsewhere:
    """Return what exports into a store need to reach other namespaces, of which there are none."""
    engine = store.engine
    common = Common(engine.clock, engine.server_limits, engine.shared)
    return otlp.Elsewhere(Directory(common, MemoryCatalog(), Retention(), default=store))


def reason_of(error: grpc.aio.AioRpcError) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return code, reason and metadata of an error of the store."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return (
        error.code(),
        info.reason.removeprefix("ERROR_REASON_"),
        dict(info.metadata),
    )
