"""All methods of LightningStoreService, by the contract's own descriptor."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.operations.ingest import HOLD_SECONDS, BadBatch
from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import Kind
from lightningstore.service.rpc import calls as wrap
from lightningstore.service.rpc import lenient
from lightningstore.service.rules import pieces, wire
from lightningstore.service.rules.errors import MalformedMessage
from lightningstore.service.rules.pieces import Cut
from lightningstore.v1 import service_pb2
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    AddSpansResponse,
    IngestSpansRequest,
    IngestSpansResponse,
    SpanBatch,
)

SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER
_ADDED_BATCH = AddSpansRequest.BATCH_FIELD_NUMBER


def handlers(store: Store, streams: wrap.Streams) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    """Return a handler for each method of the service: the store's method of the same name."""
    found: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    limit = store.engine.limits.message_bytes

    def closing() -> bool:
        return store.engine.closing

    for method in SERVICE.methods:
        request_type = GetMessageClass(method.input_type)
        operation = store.table[method.name]
        call, path = operation.call, method.full_name
        match operation.kind:
            case Kind.UNARY:
                handler = wrap.unary(path, request_type, call, limit, closing)
            case Kind.LONG_POLL:
                handler = wrap.long_poll(path, request_type, call, limit, closing)
            case Kind.SERVER_STREAM:
                handler = wrap.server_stream(path, request_type, call, streams, limit, closing)
            case Kind.CLIENT_STREAM:
                read = _decoded(call, request_type, limit)
                handler = wrap.client_stream(path, read, streams, closing)
            case Kind.SPAN_BATCH:
                handler = wrap.unary_bytes(path, _add_spans(call, store), closing)
            case Kind.SPAN_STREAM:
                handler = wrap.client_stream(path, _ingest(store), streams, closing)
        found[method.name] = handler
    return found


def _decoded(call: Any, request_type: type[Message], limit: int) -> Any:
    async def decoded(requests: AsyncIterator[bytes]) -> AsyncIterator[Message]:
        # No generator expression: that would begin to read even where the call never asks.
        async for data in requests:
            yield await wrap.read(request_type, data, limit)

    return lambda requests: call(decoded(requests))


def _ingest(store: Store) -> Any:
    async def ingest(requests: AsyncIterator[bytes]) -> IngestSpansResponse:
        return await store.ingest.ingest_batches(_messages(requests, store))

    return ingest


async def _messages(
    requests: AsyncIterator[bytes], store: Store
) -> AsyncIterator[tuple[SpanBatch, bytes | None] | Cut | BadBatch]:
    """Yield what the messages of a stream hold; a large one is looked at once there is room for it."""
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
        # Read whole, so that what is stored can be read by everybody; then kept as it came.
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
    wrap.check_size(data, store.engine.limits.message_bytes)
    if len(data) <= pieces.UNCOUNTED_BYTES:
        return None
    batch, others = pieces.split_request(data, number)
    found = store.ingest.cut(batch)
    return None if found.is_small else (found, others)


def _add_spans(call: Callable[..., Awaitable[AddSpansResponse]], store: Store) -> Any:
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
                request = lenient.repaired(AddSpansRequest, data) or wrap.decode(
                    AddSpansRequest, data, limit
                )
            return await call(request)
        batch, others = large
        request = wrap.decode(AddSpansRequest, others, limit)
        # Stands for the batch where a repeated request is told from another one with its request id.
        request.batch.schema_url = f"{len(batch.data)} bytes, checksum {zlib.crc32(batch.data)}"
        return await call(request, batch)

    return add_spans
