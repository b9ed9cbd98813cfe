"""OTLP over HTTP: POST /v1/traces, in protobuf or JSON, for what cannot speak gRPC.

What comes in goes the way of the gRPC call (otlp.py), with the same tokens, limits and answers. Reading a
large body goes to a thread, one at a time, so that neither a packed one nor a hundred of them stop the loop
or fill the memory. Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc import code_pb2
from lightningstore.service.http import otlp_json
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import otlp
from lightningstore.service.rpc.calls import Streams, internal
from lightningstore.service.rpc.status import EXPORT_CODES, to_status
from lightningstore.service.rules import pieces
from lightningstore.service.rules.errors import (
    FieldInvalid,
    PayloadTooLarge,
    ShuttingDown,
    StoreError,
)
from lightningstore.service.security.interceptor import Guard

PATH = "/v1/traces"
METHOD = f"/{otlp.SERVICE}/Export"
PROTOBUF, JSON = "application/x-protobuf", "application/json"
#: Bodies above this are read in the thread: unpacking or parsing so many takes a millisecond or two.
INLINE_BYTES = 16 * 1024
#: Bytes that zlib makes of one at most.
MOST_UNPACKED = 1032
#: A client may take so long for its headers, for its body, or between two requests.
IDLE_SECONDS = 60.0
#: What is still open at the end of the grace is cut off within twice this.
FORCE_SECONDS = 0.1
#: zlib's number for "gzip or zlib, whichever it is".
_ANY_HEADER = 47
_PACKED = ("gzip", "deflate")
_PIECE_BYTES = 8192
#: aiohttp complains of whatever is no HTTP, with a traceback; anybody could fill the log with that.
_silent = logging.getLogger(f"{__name__}.aiohttp")
_silent.disabled = True

#: Statuses by codes; every other is 500. 503 is repeated by exporters, after the time in Retry-After.
STATUSES: dict[int, int] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 413,
    code_pb2.UNAVAILABLE: 503,
}

#: What reading a body raises when the client goes, or breaks the rules of HTTP.
_BROKEN = (ConnectionError, HttpProcessingError, web.RequestPayloadError, web.PayloadAccessError)

T = TypeVar("T")


class _Unsuited(Exception):
    """A request that no OTLP client makes, with the status that says so."""

    def __init__(self, status: int, error: StoreError, **headers: str) -> None:
        super().__init__(error.message)
        self.status, self.error, self.headers = status, error, headers


class OtlpHttp:
    """Serves POST /v1/traces, and nothing else."""

    def __init__(
        self,
        store: Store,
        guard: Guard | None,
        streams: Streams,
        count: Callable[[str, str, float], None] | None,
    ) -> None:
        """Take the store, who asks for tokens, who counts open calls, and who counts calls that are over."""
        self._store = store
        self._guard = guard
        self._streams = streams
        self._count = count
        self._reader = ThreadPoolExecutor(1, "otlp-http")
        self._server = web.Server(
            self._handle,
            access_log=None,
            logger=_silent,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
        )
        self._listening: asyncio.Server | None = None
        self._open = 0
        self._stopping = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.port = 0

    async def start(self, host: str, port: int, context: ssl.SSLContext | None) -> None:
        """Listen. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._listening = await loop.create_server(self._server, host, port, ssl=context)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def stop(self, grace: float) -> None:
        """Take no more, and let what came end within `grace` seconds."""
        if self._listening is not None:
            self._listening.close()
            # aiohttp's own way to stop takes not another byte of a body that is half here.
            self._stopping = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), grace)
            await self._server.shutdown(FORCE_SECONDS)
        self._reader.shutdown(wait=False, cancel_futures=True)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self._open += 1
        self._quiet.clear()
        try:
            return await self._answer(request)
        finally:
            self._open -= 1
            if not self._open:
                self._quiet.set()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        began = perf_counter()
        headers: dict[str, str] = {}
        code = code_pb2.OK
        try:
            if self._stopping:
                raise ShuttingDown
            with self._streams:
                answer: Message = await self._export(request)
            status = 200
        except _Unsuited as unsuited:
            status, headers = unsuited.status, unsuited.headers
            answer = to_status(unsuited.error)
        except StoreError as error:
            answer, status, headers = _refusal(error)
        except Exception as error:
            answer, status, headers = _refusal(internal(error, METHOD))
        if status != 200:
            code = answer.code  # type: ignore[attr-defined]
        if self._count is not None:
            self._count("Export", code_pb2.Code.Name(code), perf_counter() - began)
        response = _response(request, answer, status, headers)
        if self._stopping or not request.content.at_eof():
            response.force_close()  # what was not read is in the way of the next request
        return response

    async def _export(self, request: web.BaseRequest) -> Message:
        _check_target(request)
        metadata = {k.lower(): v for k, v in request.headers.items() if v.isascii()}
        if self._guard is not None:
            self._guard.check(metadata.items(), METHOD, request.remote or "somebody")
        packed = _check_encoding(request)
        store, limit = self._store, self._store.engine.limits.message_bytes
        data = await _body(request, limit)
        if not packed and len(data) <= pieces.UNCOUNTED_BYTES:
            return await self._store_body(request, data, metadata)
        held = min(limit, MOST_UNPACKED * len(data)) if packed else len(data)
        await store.ingest.bodies.take(held, otlp.HOLD_SECONDS)
        try:
            if packed:
                data = await self._read(4 * len(data), lambda: unpack(data, limit))
                store.ingest.bodies.give(held - len(data))
                held = len(data)
            return await self._store_body(request, data, metadata)
        finally:
            store.ingest.bodies.give(held)

    async def _store_body(
        self, request: web.BaseRequest, data: bytes, metadata: dict[str, str]
    ) -> Message:
        """Store the spans of a body that has been unpacked."""
        store = self._store
        if request.content_type == PROTOBUF:
            return await otlp.export(store, data, metadata)
        await otlp.admit(store, data)
        scopes, refused = await self._read(
            len(data), lambda: otlp_json.scopes(data, store.engine.limits)
        )
        return await otlp.export_scopes(store, scopes, metadata, refused)

    async def _read(self, size: int, read: Callable[[], T]) -> T:
        if size <= INLINE_BYTES:
            return read()
        return await asyncio.get_running_loop().run_in_executor(self._reader, read)


def _check_target(request: web.BaseRequest) -> None:
    if request.path != PATH:
        raise _Unsuited(404, FieldInvalid("path", f"{PATH} is all that is served here"))
    if request.method != "POST":
        raise _Unsuited(405, FieldInvalid("method", "POST is wanted"), Allow="POST")


def _check_encoding(request: web.BaseRequest) -> bool:
    """Tell whether the body is packed. Raises _Unsuited for what it cannot be."""
    if request.content_type not in (PROTOBUF, JSON):
        raise _Unsuited(415, FieldInvalid("content-type", f"{PROTOBUF} or {JSON} is wanted"))
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in (*_PACKED, "identity", ""):
        wanted = ", ".join(_PACKED)
        error = FieldInvalid("content-encoding", f"one of {wanted} is wanted, or none")
        raise _Unsuited(415, error, **{"Accept-Encoding": wanted})
    return encoding in _PACKED


async def _body(request: web.BaseRequest, limit: int) -> bytes:
    """Return what was sent. Raises PayloadTooLarge, FieldInvalid, _Unsuited."""
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
        raise _Unsuited(408, FieldInvalid("body", f"not here in {IDLE_SECONDS:g} s")) from None
    except _BROKEN as error:
        raise FieldInvalid("body", f"cannot be read: {type(error).__name__}") from None
    return b"".join(parts)


def unpack(data: bytes, limit: int) -> bytes:
    """Return the bytes of a body packed by gzip or zlib, in one member or several, of at most `limit`.

    Raises PayloadTooLarge, FieldInvalid.
    """
    found = bytearray()
    reader = zlib.decompressobj(_ANY_HEADER)
    at = 0
    # In pieces, for what follows the end of a member is copied: there may be a member every 20 bytes.
    while at < len(data):
        if reader.eof:
            reader = zlib.decompressobj(_ANY_HEADER)
        part = data[at : at + _PIECE_BYTES]
        try:
            found += reader.decompress(part, limit + 1 - len(found))
        except zlib.error as error:
            raise FieldInvalid("body", f"is not packed as content-encoding says: {error}") from None
        if len(found) > limit:
            raise PayloadTooLarge("unpacked body", len(found), limit)
        at += len(part) - len(reader.unused_data)
    if not reader.eof:
        raise FieldInvalid("body", "is not all of a packed body")
    return bytes(found)


def _refusal(error: StoreError) -> tuple[Message, int, dict[str, str]]:
    answer = to_status(error, EXPORT_CODES)
    status = STATUSES.get(answer.code, 500)
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 503 and error.retry_delay is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_delay))
    return answer, status, headers


def _response(
    request: web.BaseRequest, answer: Message, status: int, headers: dict[str, str]
) -> web.Response:
    """Return the answer in the encoding of the request; in JSON where that is neither of the two."""
    if request.content_type == PROTOBUF:
        body, kind = answer.SerializeToString(), PROTOBUF
    else:
        body, kind = MessageToJson(answer, indent=None).encode(), JSON
    headers = {"Server": "lightningstore", **headers}
    return web.Response(body=body, status=status, headers=headers, content_type=kind)
