"""OTLP over HTTP: POST /v1/traces, in protobuf or JSON, for clients without gRPC.

Requests are handled as the gRPC call is (rpc/otlp.py), with the same tokens, limits and answers. Large bodies are
decompressed and parsed in a thread, one at a time, so that neither one of them nor a hundred can hold the event loop
or fill the memory. Source: https://opentelemetry.io/docs/specs/otlp/#otlphttp.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from aiohttp import web
from google.protobuf.message import Message
from lightningstore.service.http import bodies, otlp_json
from lightningstore.service.http.server import (
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
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.namespaces import (
    DEFAULT_NAMESPACE,
    NAMESPACE_KEY,
    namespace_of,
)
from lightningstore.service.security.interceptor import Guard
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

PATH = "/v1/traces"
METHOD = f"/{otlp.SERVICE}/Export"
_COMPRESSIONS = ("gzip", "deflate")


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
        limits, shared = directory.limits, directory.shared
        self._bodies = bodies.Bodies("otlp-http", limits.message_bytes, shared.bodies)

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The route. Its name is how calls over gRPC are counted, too."""
        return (web.post(PATH, self._answer, name="Export", expect_handler=bodies.expect_later),)

    def close(self) -> None:
        """Read no more bodies."""
        self._bodies.close()

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
        is_compressed = _check_encoding(request)
        data = await bodies.read(request, self._directory.limits.message_bytes)
        async with self._bodies.decompressed(data, is_compressed=is_compressed) as decompressed:
            yield decompressed

    async def _forward(
        self, peer: Peer, name: str, request: web.Request, metadata: otlp.Metadata
    ) -> Message:
        """Have the server that owns the namespace store the spans of a request."""
        async with self._decompressed(request) as data:
            if request.content_type == PROTOBUF:
                answer = await peer.call(otlp.EXPORT, data, metadata, otlp.FORWARD_SECONDS)
                return ExportTraceServiceResponse.FromString(answer)
            limits = self._directory.limits
            scopes, refused = await self._bodies.run(
                len(data), lambda: otlp_json.scopes(data, limits)
            )
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
        scopes, refused = await self._bodies.run(
            len(data), lambda: otlp_json.scopes(data, store.engine.limits)
        )
        return await otlp.export_scopes(store, scopes, metadata, refused, self._elsewhere)


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
