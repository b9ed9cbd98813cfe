"""The gRPC handlers of both services of the contract: each method of a descriptor, bound to its operation."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.namespaces import service as namespaces
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.operations.ingest import BadBatch
from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import Kind, Operation, table
from lightningstore.service.rpc import lenient, otlp
from lightningstore.service.rpc.calls import Calls, Context, Handler, check_size, decode
from lightningstore.service.rpc.forwarding import FORWARDED_KEY, Forwarding
from lightningstore.service.rules import pieces, wire
from lightningstore.service.rules.errors import MalformedMessage, NotOwner
from lightningstore.service.rules.limits import HOLD_SECONDS
from lightningstore.service.rules.namespaces import is_namespace
from lightningstore.service.rules.pieces import Cut
from lightningstore.v1 import namespace_pb2, service_pb2
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    AddSpansResponse,
    IngestSpansRequest,
    IngestSpansResponse,
    SpanBatch,
)

NAMESPACES = namespace_pb2.DESCRIPTOR.services_by_name["NamespaceService"]
SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER
_ADDED_BATCH = AddSpansRequest.BATCH_FIELD_NUMBER


def path_of(method: MethodDescriptor) -> str:
    """Return the path by which gRPC names a method."""
    return f"/{method.containing_service.full_name}/{method.name}"


#: Whether requests and answers of each method that belongs to a namespace are streams, by its path.
KINDS: dict[str, tuple[bool, bool]] = {
    path_of(method): (method.client_streaming, method.server_streaming)
    for method in SERVICE.methods
} | {otlp.EXPORT: (False, False)}


def handlers(store: Store, calls: Calls) -> dict[str, Handler]:
    """Return a handler for each method of LightningStoreService, by its path."""
    operations = table(store)
    return {
        path_of(method): _handler(store, calls, method, operations[method.name])
        for method in SERVICE.methods
    }


def namespace_handlers(
    directory: Directory, calls: Calls, forwarding: Forwarding | None = None
) -> dict[str, Handler]:
    """Return a handler for each method of NamespaceService, by its name."""
    operations = namespaces.table(directory)
    made = {}
    for method in NAMESPACES.methods:
        request_type, call = GetMessageClass(method.input_type), operations[method.name].call
        handler = calls.unary(method.full_name, request_type, call)
        if forwarding is not None:
            handler = _at_owner(calls, method, handler, forwarding)
        made[method.name] = handler
    return made


def _at_owner(
    calls: Calls, method: MethodDescriptor, handler: Handler, forwarding: Forwarding
) -> Handler:
    """Return a handler for one of several servers: what concerns one namespace is done by the server that serves it."""
    request_type = GetMessageClass(method.input_type)
    here: Any = handler

    async def answer(data: bytes, context: Context) -> bytes:
        name = _namespace_in(request_type, data)
        peer = forwarding.peer(name) if name else None
        if peer is None:
            await (forwarding.discover(name) if name else forwarding.refresh())
            peer = forwarding.peer(name) if name else None  # this server may have learnt of it
        if peer is None:
            answer: bytes = await here.unary_unary(data, context)
        elif any(key == FORWARDED_KEY for key, _ in context.invocation_metadata() or ()):
            raise NotOwner(name, peer.address)
        else:
            answer = await peer.forward(path_of(method), data, context, name)
        return answer

    return grpc.unary_unary_rpc_method_handler(calls.answered(method.full_name, answer))


def _namespace_in(request_type: type[Message], data: bytes) -> str:
    """Return the name in a request of NamespaceService, "" for one without a valid name, which no server serves."""
    try:
        request: Any = request_type.FromString(data)
    except DecodeError:
        return ""  # reported where the call is handled
    has_settings = "namespace" in request_type.DESCRIPTOR.fields_by_name
    name: str = getattr(request.namespace if has_settings else request, "name", "")
    return name if is_namespace(name) else ""


def _handler(store: Store, calls: Calls, method: MethodDescriptor, operation: Operation) -> Handler:
    request_type = GetMessageClass(method.input_type)
    path, call = method.full_name, operation.call
    match operation.kind:
        case Kind.UNARY:
            return calls.unary(path, request_type, call)
        case Kind.LONG_POLL:
            return calls.long_poll(path, request_type, call)
        case Kind.SERVER_STREAM:
            return calls.server_stream(path, request_type, call)
        case Kind.CLIENT_STREAM:
            return calls.client_stream(
                path, lambda requests: call(calls.decoded(request_type, requests))
            )
        case Kind.SPAN_BATCH:
            add = _add_spans(call, store)
            return calls.unary_bytes(path, lambda data, _: add(data))
        case Kind.SPAN_STREAM:
            return calls.client_stream(path, _ingest(store))


def _ingest(store: Store) -> Callable[[AsyncIterator[bytes]], Awaitable[IngestSpansResponse]]:
    """Return IngestSpans over serialised requests: a large batch is stored without being parsed."""

    async def ingest(requests: AsyncIterator[bytes]) -> IngestSpansResponse:
        return await store.ingest.ingest_batches(_messages(requests, store))

    return ingest


async def _messages(
    requests: AsyncIterator[bytes], store: Store
) -> AsyncIterator[tuple[SpanBatch, bytes | None] | Cut | BadBatch]:
    """Yield the batches of a stream; a large message is read once there is room for it."""
    async for data in requests:
        if len(data) <= pieces.UNCOUNTED_BYTES:
            yield _read(data, store)
        else:
            async with store.ingest.intake.hold(len(data)):
                yield _read(data, store)


def _read(data: bytes, store: Store) -> tuple[SpanBatch, bytes | None] | Cut | BadBatch:
    """Return the batch of a message, and the message's bytes if they hold nothing else.

    A large batch is not parsed. Raises PayloadTooLarge, BatchTooLarge, MalformedMessage.
    """
    large = _large(data, store, _BATCH)
    if large is not None:
        return large[0]
    try:
        # Parsed whole, to be sure that every client can read what is stored; stored as it came.
        batch = IngestSpansRequest.FromString(data).batch
    except DecodeError:
        request = lenient.repaired(IngestSpansRequest, data)
        if request is not None:
            return request.batch, None
        error = MalformedMessage(IngestSpansRequest.DESCRIPTOR.full_name)
        count = lenient.count_spans(data)
        if count is None:
            raise error from None
        return BadBatch(count, error)
    if len(batch.spans) > pieces.PIECE_SPANS:
        return store.ingest.cut(pieces.split_request(data, _BATCH)[0])
    return batch, data if wire.frame(data, _BATCH) is not None else None


def _large(data: bytes, store: Store, number: int) -> tuple[Cut, bytes] | None:
    """Return the batch in a field of a message, and the other fields, if it is too large to be parsed at once."""
    check_size(data, store.engine.limits.message_bytes)
    if len(data) <= pieces.UNCOUNTED_BYTES:
        return None
    batch, others = pieces.split_request(data, number)
    found = store.ingest.cut(batch)
    return None if found.is_small else (found, others)


def _add_spans(
    call: Callable[..., Awaitable[AddSpansResponse]], store: Store
) -> Callable[[bytes], Awaitable[AddSpansResponse]]:
    """Return AddSpans over serialised requests: a large batch is stored without being parsed."""
    limit = store.engine.limits.message_bytes

    async def add_spans(data: bytes) -> AddSpansResponse:
        if len(data) <= pieces.UNCOUNTED_BYTES:
            return await add(data)
        async with store.ingest.intake.hold(len(data), HOLD_SECONDS):
            return await add(data)

    async def add(data: bytes) -> AddSpansResponse:
        large = _large(data, store, _ADDED_BATCH)
        if large is None:
            try:
                request = AddSpansRequest.FromString(data)
            except DecodeError:
                request = lenient.repaired(AddSpansRequest, data) or decode(
                    AddSpansRequest, data, limit
                )
            return await call(request)
        batch, others = large
        request = decode(AddSpansRequest, others, limit)
        # Stands for the batch where a repeated request is compared with the first one of its request id.
        request.batch.schema_url = f"{len(batch.data)} bytes, checksum {zlib.crc32(batch.data)}"
        return await call(request, batch)

    return add_spans
