"""The Connect protocol on the wire: content types, headers, envelopes, errors. Source: https://connectrpc.com/docs/protocol."""

from __future__ import annotations

import asyncio
import base64
import binascii
import math
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import msgspec
from aiohttp import web
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from lightningstore.service.http.server import HttpError
from lightningstore.service.rpc.dispatch import Metadata
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.namespaces import NAMESPACE_KEY

JSON = "application/json"
#: HTTP statuses of errors, by status code.
STATUSES: dict[int, int] = {
    code_pb2.CANCELLED: 499,
    code_pb2.UNKNOWN: 500,
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.DEADLINE_EXCEEDED: 504,
    code_pb2.NOT_FOUND: 404,
    code_pb2.ALREADY_EXISTS: 409,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.RESOURCE_EXHAUSTED: 429,
    code_pb2.FAILED_PRECONDITION: 400,
    code_pb2.ABORTED: 409,
    code_pb2.OUT_OF_RANGE: 400,
    code_pb2.UNIMPLEMENTED: 501,
    code_pb2.INTERNAL: 500,
    code_pb2.UNAVAILABLE: 503,
    code_pb2.DATA_LOSS: 500,
    code_pb2.UNAUTHENTICATED: 401,
}
#: The details of errors that the contract uses.
_DETAILS: dict[str, type[Message]] = {
    kind.DESCRIPTOR.full_name: kind
    for kind in (
        error_details_pb2.ErrorInfo,
        error_details_pb2.BadRequest,
        error_details_pb2.RetryInfo,
    )
}
#: Flags of an envelope, and its head: flags, and the length of what follows.
_COMPRESSED, _END_OF_STREAM = 1, 2
_HEAD = struct.Struct(">BI")
_GZIP, _IDENTITY = "gzip", "identity"
#: The quality of an encoding that a client excludes.
_EXCLUDED = re.compile(r"q=0(\.0*)?")
#: Answers above this size are sent in pieces of it: a connection with TLS encrypts a piece in one step.
PIECE_BYTES = 256 << 10
_MILLISECONDS = re.compile(r"[0-9]{1,10}")
#: How the names of headers start that are metadata of a call. All others are HTTP's.
_METADATA = ("authorization", "x-lightning-", "agentlightning.", "traceparent", "tracestate")
#: Trailers of gRPC whose content is in the error itself.
_IN_ERROR = ("grpc-status-details-bin", "google.rpc.retryinfo-bin")


class Written(NamedTuple):
    """A message as it is sent."""

    parts: list[bytes]
    is_compressed: bool = False

    @property
    def size(self) -> int:
        """Its number of bytes."""
        return sum(map(len, self.parts))


class Form(NamedTuple):
    """How the messages of a call are encoded, by its content type."""

    content_type: str
    is_json: bool
    streams: bool

    @property
    def overhead(self) -> int:
        """Number of bytes that a body has besides its message."""
        return _HEAD.size if self.streams else 0


FORMS = {
    form.content_type: form
    for form in (
        Form(JSON, is_json=True, streams=False),
        Form("application/proto", is_json=False, streams=False),
        Form("application/connect+json", is_json=True, streams=True),
        Form("application/connect+proto", is_json=False, streams=True),
    )
}


def form_of(request: web.Request) -> Form | None:
    """Return the form of a call, None for a content type that is not supported."""
    return FORMS.get(request.content_type)


def checked_form(request: web.Request, *, streams: bool) -> Form:
    """Return the form of a call of a method. Raises HttpError, FieldInvalid."""
    form = form_of(request)
    if form is None or form.streams is not streams:
        accepted = [each for each, form in FORMS.items() if form.streams is streams]
        error = FieldInvalid("content-type", f"must be {' or '.join(accepted)} for this method")
        raise HttpError(415, error, **{"Accept-Post": ", ".join(accepted)})
    if request.charset is not None and request.charset.lower() not in ("utf-8", "utf8"):
        raise HttpError(415, FieldInvalid("content-type", "charset must be utf-8"))
    if request.headers.get("Connect-Protocol-Version", "1") != "1":
        raise FieldInvalid("connect-protocol-version", "must be 1, or absent")
    return form


def deadline_of(request: web.Request) -> float | None:
    """Return the time of the event loop at which a call ends, None for never. Raises FieldInvalid."""
    text = request.headers.get("Connect-Timeout-Ms")
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text):
        raise FieldInvalid("connect-timeout-ms", "must be milliseconds, of at most ten digits")
    return asyncio.get_running_loop().time() + int(text) / 1000


def metadata_of(request: web.Request) -> Metadata:
    """Return the metadata of a call."""
    found: list[tuple[str, Any]] = []
    for name, value in request.headers.items():
        key = name.lower()
        if not key.startswith(_METADATA):
            continue
        if key.endswith("-bin"):
            try:
                found.append((key, base64.b64decode(value + "=" * (-len(value) % 4))))
            except (binascii.Error, ValueError):
                continue
        # A namespace that is not ASCII is an error; without it the call would go to the default one.
        elif value.isascii() or key == NAMESPACE_KEY:
            found.append((key, value))
    return tuple(found)


def is_generated(request: web.Request) -> bool:
    """Return whether the client has been generated from the contract, perhaps from a later version of it."""
    return "Connect-Protocol-Version" in request.headers


def opened(data: bytes, form: Form, request: web.Request) -> tuple[bytes, bool]:
    """Return the message in a body, and whether it is compressed. Raises FieldInvalid, HttpError."""
    encoding = _encoding(request, "Content-Encoding")
    if not form.streams:
        return data, encoding == _GZIP
    if encoding == _GZIP:
        raise FieldInvalid(
            "content-encoding", "must be absent; connect-content-encoding is for streams"
        )
    if len(data) < _HEAD.size:
        raise FieldInvalid("body", "must be one message in an envelope of five bytes")
    flags, size = _HEAD.unpack_from(data)
    if size != len(data) - _HEAD.size or flags & ~_COMPRESSED:
        raise FieldInvalid("body", "must be one message, and its envelope must have its length")
    is_compressed = bool(flags & _COMPRESSED)
    if is_compressed and _encoding(request, "Connect-Content-Encoding") != _GZIP:
        raise FieldInvalid("connect-content-encoding", f"must be {_GZIP} for a compressed message")
    return data[_HEAD.size :], is_compressed


def _encoding(request: web.Request, header: str) -> str:
    encoding = request.headers.get(header, "").strip().lower() or _IDENTITY
    if encoding not in (_GZIP, _IDENTITY):
        error = FieldInvalid(header.lower(), f"must be {_GZIP} or {_IDENTITY}, or absent")
        raise HttpError(415, error, **{"Accept-Encoding": _GZIP})
    return encoding


def _accepts_gzip(request: web.Request, header: str) -> bool:
    """Return whether a client reads what gzip has compressed."""
    for item in ",".join(request.headers.getall(header, [])).split(","):
        name, _, quality = item.replace(" ", "").lower().partition(";")
        if name == _GZIP:
            return not _EXCLUDED.fullmatch(quality)
    return False


def error_of(status: status_pb2.Status) -> dict[str, Any]:
    """Return an error as Connect's JSON has it."""
    found: dict[str, Any] = {
        "code": code_pb2.Code.Name(status.code).lower().replace("cancelled", "canceled"),
        "message": status.message,
    }
    details = []
    for packed in status.details:
        detail: dict[str, Any] = {
            "type": packed.TypeName(),
            "value": base64.b64encode(packed.value).decode().rstrip("="),
        }
        kind = _DETAILS.get(packed.TypeName())
        if kind is not None:
            detail["debug"] = MessageToDict(kind.FromString(packed.value))
        details.append(detail)
    if details:
        found["details"] = details
    return found


def refusal(form: Form | None, status: status_pb2.Status, trailers: Metadata = ()) -> web.Response:
    """Return the answer to a call that has failed before its first answer."""
    if form is not None and form.streams:
        body = _end_of_stream(trailers, status)
        return web.Response(body=body, content_type=form.content_type)
    response = web.Response(body=msgspec.json.encode(error_of(status)), content_type=JSON)
    response.set_status(STATUSES[status.code])
    for packed in status.details:
        info = error_details_pb2.RetryInfo()
        if packed.Unpack(info):
            seconds = math.ceil(info.retry_delay.ToTimedelta().total_seconds())
            response.headers["Retry-After"] = str(seconds)
    if status.code == code_pb2.UNAUTHENTICATED:
        response.headers["WWW-Authenticate"] = "Bearer"
    _add_trailers(response, trailers)
    return response


class Reply:
    """The answers to a call."""

    def __init__(self, request: web.Request) -> None:
        """Prepare to answer; nothing is sent yet."""
        self._request = request
        self._form = form_of(request)
        self._stream: web.StreamResponse | None = None
        #: Whether a message has been sent in part.
        self._is_partial = False
        streams = self._form is not None and self._form.streams
        #: Whether messages may be compressed.
        self.accepts_gzip = _accepts_gzip(
            request, "Connect-Accept-Encoding" if streams else "Accept-Encoding"
        )
        #: The answer of a call that does not stream.
        self.body = Written([])

    async def begin(self) -> None:
        """Send the headers of a stream, so that the client knows that it is established. May be called twice."""
        if self._stream is None and self._form is not None and self._form.streams:
            self._stream = web.StreamResponse()
            self._stream.content_type = self._form.content_type
            if self.accepts_gzip:
                self._stream.headers["Connect-Content-Encoding"] = _GZIP
            await self._stream.prepare(self._request)

    async def send(self, answer: Written) -> None:
        """Send one answer of a stream."""
        await self.begin()
        assert self._stream is not None  # noqa: S101  (begun)
        head = _HEAD.pack(_COMPRESSED if answer.is_compressed else 0, answer.size)
        await self._write(self._stream, [head, *answer.parts])

    async def end(self, trailers: Metadata) -> web.StreamResponse:
        """Return the response of a call that has succeeded, which has been sent unless it is small."""
        await self.begin()
        if self._stream is not None:
            return await self._ended(self._stream, _end_of_stream(trailers))
        assert self._form is not None  # noqa: S101  (or the call had failed)
        body, is_small = self.body, self.body.size <= PIECE_BYTES
        response = web.Response(body=b"".join(body.parts)) if is_small else web.StreamResponse()
        response.content_type = self._form.content_type
        if body.is_compressed:
            response.headers["Content-Encoding"] = _GZIP
        _add_trailers(response, trailers)
        if not is_small:
            response.content_length = body.size
            self._stream = response
            await response.prepare(self._request)
            await self._write(response, body.parts)
            await response.write_eof()
        return response

    async def fail(
        self,
        status: status_pb2.Status,
        trailers: Metadata = (),
        number: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> web.StreamResponse:
        """Return the response of a call that has failed. `number` is an HTTP status other than that of the error."""
        if self._stream is not None and self._is_partial:
            if self._request.transport is not None:
                self._request.transport.close()  # Whatever followed would be taken for the rest.
            return self._stream
        if self._stream is not None:
            return await self._ended(self._stream, _end_of_stream(trailers, status))
        if number is None:
            return refusal(self._form, status, trailers)
        response = refusal(None, status)
        response.set_status(number)
        response.headers.update(headers or {})
        return response

    def abandoned(self) -> web.StreamResponse:
        """Return the response to a client that is gone."""
        if self._stream is not None:
            return self._stream
        return web.Response(status=STATUSES[code_pb2.CANCELLED])

    async def _write(self, response: web.StreamResponse, parts: Iterable[bytes]) -> None:
        """Write the parts of a message, at the pace of the client."""
        self._is_partial = True
        for part in parts:
            for at in range(0, len(part), PIECE_BYTES):
                await response.write(memoryview(part)[at : at + PIECE_BYTES])
        self._is_partial = False

    async def _ended(self, stream: web.StreamResponse, last: bytes) -> web.StreamResponse:
        try:
            await stream.write(last)
            await stream.write_eof()
        except ConnectionError:
            pass  # The client is gone.
        return stream


def _end_of_stream(trailers: Metadata, status: status_pb2.Status | None = None) -> bytes:
    last: dict[str, Any] = {}
    if status is not None:
        last["error"] = error_of(status)
    metadata: dict[str, list[str]] = {}
    for key, value in _texts(trailers):
        metadata.setdefault(key, []).append(value)
    if metadata:
        last["metadata"] = metadata
    data = msgspec.json.encode(last)
    return _HEAD.pack(_END_OF_STREAM, len(data)) + data


def _add_trailers(response: web.StreamResponse, trailers: Metadata) -> None:
    for key, value in _texts(trailers):
        response.headers.add(f"Trailer-{key}", value)


def _texts(trailers: Metadata) -> Iterable[tuple[str, str]]:
    """Yield trailers as text; those with bytes in base64."""
    for key, value in trailers:
        if key in _IN_ERROR:
            continue
        yield key, base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
