"""OTLP over HTTP: POST /v1/traces, in protobuf or JSON, for clients without gRPC.

Requests are handled as the gRPC call is (rpc/otlp.py), with the same tokens, limits and answers. Large bodies are
decompressed and parsed in a thread, one at a time, so that neither one of them nor a hundred can hold the event loop
or fill the memory. Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf.message import Message
from lightningstore.service.http import otlp_json
from lightningstore.service.http.server import (
    IDLE_SECONDS,
    JSON,
    PROTOBUF,
    HttpError,
    encoded,
)
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import otlp
from lightningstore.service.rpc.calls import Streams
from lightningstore.service.rpc.forwarding import Peer
from lightningstore.service.rules import pieces
from lightningstore.service.rules.errors import FieldInvalid, PayloadTooLarge
from lightningstore.service.rules.limits import HOLD_SECONDS
from lightningstore.service.rules.namespaces import (
    DEFAULT_NAMESPACE,
    NAMESPACE_KEY,
    namespace_of,
)
from lightningstore.service.security.interceptor import Guard
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

PATH = "/v1/traces"
METHOD = f"/{otlp.SERVICE}/Export"
#: Bodies above this size are decompressed or parsed in the thread: that takes a millisecond or two.
INLINE_BYTES = 16 * 1024
#: Bytes that zlib makes of one, at most.
MAX_INFLATION = 1032
#: zlib's number for "gzip or zlib, whichever it is".
_ANY_HEADER = 47
_COMPRESSIONS = ("gzip", "deflate")
_PIECE_BYTES = 8192

#: What reading a body raises when the client disconnects, or violates HTTP.
_BROKEN = (ConnectionError, HttpProcessingError, web.RequestPayloadError, web.PayloadAccessError)

T = TypeVar("T")


class OtlpTraces:
    """Serves POST /v1/traces."""

    def __init__(
        self,
        directory: Directory,
        guard: Guard | None,
        streams: Streams,
        elsewhere: otlp.Elsewhere,
    ) -> None:
        """Take the namespaces, what checks tokens, what counts open calls, and what resources may name."""
        self._directory = directory
        self._guard = guard
        self._elsewhere = elsewhere
        self._streams = streams
        self._reader = ThreadPoolExecutor(1, "otlp-http")

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The route. Its name is how calls over gRPC are counted, too."""
        return (web.post(PATH, self._answer, name="Export", expect_handler=_expect_later),)

    def close(self) -> None:
        """Read no more bodies."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        with self._streams:
            return encoded(request, await self._export(request))

    async def _export(self, request: web.Request) -> Message:
        headers = [(key.lower(), value) for key, value in request.headers.items()]
        # A namespace that is not ASCII is an error; without it the spans would go to the default one.
        metadata = [(k, v) for k, v in headers if v.isascii() or k == NAMESPACE_KEY]
        if self._guard is not None:
            self._guard.check(metadata, METHOD, request.remote or "somebody")
        name = namespace_of(metadata)
        if name == DEFAULT_NAMESPACE and self._directory.default is not None:
            return await self._store(self._directory.default, request, metadata)
        place = await self._elsewhere.located(name)
        if isinstance(place, Peer):
            return await self._forward(place, name, request, metadata)
        async with self._directory.use(place) as store:
            return await self._store(store, request, metadata)

    @asynccontextmanager
    async def _decompressed(self, request: web.Request) -> AsyncIterator[bytes]:
        """Read the body; it counts against the limit of all bodies until the end of the context."""
        compressed = _check_encoding(request)
        limit, bodies = self._directory.limits.message_bytes, self._directory.shared.bodies
        data = await _body(request, limit)
        if not compressed and len(data) <= pieces.UNCOUNTED_BYTES:
            yield data
            return
        held = min(limit, MAX_INFLATION * len(data)) if compressed else len(data)
        await bodies.take(held, HOLD_SECONDS)
        try:
            if compressed:
                data = await self._read(4 * len(data), lambda: decompress(data, limit))
                bodies.give(held - len(data))
                held = len(data)
            yield data
        finally:
            bodies.give(held)

    async def _forward(
        self, peer: Peer, name: str, request: web.Request, metadata: otlp.Metadata
    ) -> Message:
        """Have the server that owns the namespace store the spans of a request."""
        async with self._decompressed(request) as data:
            if request.content_type == PROTOBUF:
                answer = await peer.call(otlp.EXPORT, data, metadata, otlp.FORWARD_SECONDS)
                return ExportTraceServiceResponse.FromString(answer)
            limits = self._directory.limits
            scopes, refused = await self._read(len(data), lambda: otlp_json.scopes(data, limits))
            return otlp.response(refused + await otlp.forward(peer, name, scopes, metadata))

    async def _store(self, store: Store, request: web.Request, metadata: otlp.Metadata) -> Message:
        """Store the spans of a request."""
        async with self._decompressed(request) as data:
            return await self._store_body(store, request, data, metadata)

    async def _store_body(
        self, store: Store, request: web.Request, data: bytes, metadata: otlp.Metadata
    ) -> Message:
        """Store the spans of a decompressed body."""
        if request.content_type == PROTOBUF:
            return await otlp.export(store, data, metadata, self._elsewhere)
        await otlp.admit(store, data)
        scopes, refused = await self._read(
            len(data), lambda: otlp_json.scopes(data, store.engine.limits)
        )
        return await otlp.export_scopes(store, scopes, metadata, refused, self._elsewhere)

    async def _read(self, size: int, read: Callable[[], T]) -> T:
        if size <= INLINE_BYTES:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)


async def _expect_later(_: web.Request) -> None:
    """Do not ask for the body yet: `_body` does, once the token and the headers are good."""


def _check_encoding(request: web.Request) -> bool:
    """Return whether the body is compressed. Raises HttpError for types and encodings that are not supported."""
    if request.content_type not in (PROTOBUF, JSON):
        raise HttpError(415, FieldInvalid("content-type", f"must be {PROTOBUF} or {JSON}"))
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in (*_COMPRESSIONS, "identity", ""):
        accepted = ", ".join(_COMPRESSIONS)
        error = FieldInvalid("content-encoding", f"must be one of {accepted}, or absent")
        raise HttpError(415, error, **{"Accept-Encoding": accepted})
    return encoding in _COMPRESSIONS


async def _body(request: web.Request, limit: int) -> bytes:
    """Return the body as it was sent. Raises PayloadTooLarge, FieldInvalid, HttpError."""
    if (request.content_length or 0) > limit:
        raise PayloadTooLarge("body", request.content_length or 0, limit)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts, size = [], 0

    async def read() -> None:
        nonlocal size
        async for part in request.content.iter_any():
            size += len(part)
            if size > limit:
                raise PayloadTooLarge("body", size, limit)
            parts.append(part)

    try:
        await asyncio.wait_for(read(), IDLE_SECONDS)
    except TimeoutError:
        raise HttpError(
            408, FieldInvalid("body", f"must arrive within {IDLE_SECONDS:g} s")
        ) from None
    except _BROKEN as error:
        raise FieldInvalid("body", f"cannot be read: {type(error).__name__}") from None
    return b"".join(parts)


def decompress(data: bytes, limit: int) -> bytes:
    """Return a body, compressed by gzip or zlib in one member or several, of at most `limit` bytes.

    Raises PayloadTooLarge, FieldInvalid.
    """
    found = bytearray()
    reader = zlib.decompressobj(_ANY_HEADER)
    at = 0
    # In pieces: zlib copies what follows the end of a member, and there may be a member every 20 bytes.
    while at < len(data):
        if reader.eof:
            reader = zlib.decompressobj(_ANY_HEADER)
        part = data[at : at + _PIECE_BYTES]
        try:
            found += reader.decompress(part, limit + 1 - len(found))
        except zlib.error as error:
            raise FieldInvalid(
                "body", f"is not compressed as content-encoding says: {error}"
            ) from None
        if len(found) > limit:
            raise PayloadTooLarge("decompressed body", len(found), limit)
        at += len(part) - len(reader.unused_data)
    if not reader.eof:
        raise FieldInvalid("body", "is incomplete: the compressed data ends early")
    return bytes(found)
