"""One port that serves HTTP on the event loop: routes, limits on clients, and errors as google.rpc.Status."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Protocol, cast, runtime_checkable

from aiohttp import web
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc import code_pb2
from lightningstore.service.rpc.calls import internal
from lightningstore.service.rpc.status import EXPORT_CODES, to_status
from lightningstore.service.rules.errors import FieldInvalid, ShuttingDown, StoreError

PROTOBUF, JSON = "application/x-protobuf", "application/json"
#: Seconds that a client may take for its headers, for its body, between two requests, and to receive what was sent.
IDLE_SECONDS = 60.0
#: Seconds of silence after which the kernel asks whether a client is still there.
KEEPALIVE_SECONDS = 20
#: Connections that are still open at the end of the grace are closed within twice this number of seconds.
FORCE_SECONDS = 0.1
#: Value of the header Server.
SERVER = "lightningstore"
#: Characters of what aiohttp says about a malformed request.
MESSAGE_LENGTH = 200
#: aiohttp logs a traceback for whatever is not HTTP: anybody could fill the log with them.
_silent = logging.getLogger(f"{__name__}.aiohttp")
_silent.disabled = True

#: HTTP statuses by status code; every other code is 500. Exporters retry 503 after the time in Retry-After.
STATUSES: dict[int, int] = {
    code_pb2.INVALID_ARGUMENT: 400,
    code_pb2.UNAUTHENTICATED: 401,
    code_pb2.PERMISSION_DENIED: 403,
    code_pb2.NOT_FOUND: 404,
    code_pb2.RESOURCE_EXHAUSTED: 413,
    code_pb2.UNAVAILABLE: 503,
}

#: Counts a call: name, gRPC's name of its status code, duration in seconds.
Count = Callable[[str, str, float], None]


class HttpError(Exception):
    """A request that HTTP itself has a status for, such as one for an unknown path."""

    def __init__(self, status: int, error: StoreError, **headers: str) -> None:
        super().__init__(error.message)
        self.status, self.error, self.headers = status, error, headers


class Service(Protocol):
    """Something that is served on a port."""

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """Its routes. Calls of a route with a name are counted by that name."""

    def close(self) -> None:
        """End what the service has started."""


@runtime_checkable
class ErrorForm(Protocol):
    """A service whose clients expect errors in another form than google.rpc.Status."""

    def refusal(self, request: web.Request, error: Exception) -> tuple[web.Response, str]:
        """Return the answer to a request that failed, and gRPC's name of its status code."""


class Rules(Protocol):
    """What a port asks of all requests, and adds to all answers."""

    def check(self, request: web.Request) -> None:
        """Reject a request. Raises HttpError."""

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the answer to a request that is for no service."""

    def complete(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add headers to an answer."""


class _Connection(web.RequestHandler):
    """A connection of a client. What is not HTTP is answered in the form of all other errors."""

    __slots__ = ()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer to a request that aiohttp could not parse or answer."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        why = " ".join((message or str(exc or "it failed")).split())[:MESSAGE_LENGTH]
        answer = encoded(request, to_status(FieldInvalid("request", f"not HTTP/1.1: {why}")))
        answer.set_status(status)
        answer.headers["Server"] = SERVER
        answer.force_close()
        return answer


class HttpServer:
    """Serves services on one port. A request whose client disconnects is cancelled, as a call of gRPC is."""

    def __init__(
        self, services: Sequence[Service], count: Count | None = None, rules: Rules | None = None
    ) -> None:
        """Take the services, the counter of calls, and the rules for all requests. Needs a running event loop."""
        self._services = services
        self._count = count
        self._rules = rules
        self._forms = {
            route.handler: service.refusal
            for service in services
            if isinstance(service, ErrorForm)
            for route in service.routes
        }
        application = web.Application(middlewares=[self._answer])
        application.on_response_prepare.append(self._prepare)
        application.add_routes([route for service in services for route in service.routes])
        self._runner = web.AppRunner(
            application, shutdown_timeout=FORCE_SECONDS, handler_cancellation=True
        )
        self._listening: asyncio.Server | None = None
        self._open = 0
        self._stopping = False
        self._quiet = asyncio.Event()
        self._quiet.set()
        self.port = 0

    async def start(
        self,
        host: str,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        shares_port: bool = False,
    ) -> None:
        """Listen, for TLS where there is a context. Nothing is left behind on failure. Raises OSError.

        `shares_port`: other processes listen on the same port, and the system divides connections among them.
        """
        await self._runner.setup()
        server = cast(web.Server, self._runner.server)
        loop = asyncio.get_running_loop()
        try:
            self._listening = await loop.create_server(
                lambda: _Connection(
                    server,
                    loop=loop,
                    access_log=None,  # type: ignore[arg-type]
                    logger=_silent,
                    auto_decompress=False,
                    keepalive_timeout=IDLE_SECONDS,
                ),
                host,
                port,
                ssl=context,
                reuse_port=shares_port or None,
            )
        except BaseException:
            await self.stop(0)
            raise
        for listener in self._listening.sockets:
            _limit_silence(listener)
        self.port = self._listening.sockets[0].getsockname()[1]

    async def stop(self, grace: float) -> None:
        """Accept no more requests, let open ones end within `grace` seconds, then close. May be called twice."""
        self._stopping = True
        if self._listening is not None:
            self._listening.close()
            # aiohttp's own shutdown stops reading bodies at once: requests that have begun could not end.
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._quiet.wait(), grace)
        await self._runner.cleanup()
        for service in self._services:
            service.close()

    @web.middleware
    async def _answer(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Call the handler of a route; its errors become answers."""
        self._open += 1
        self._quiet.clear()
        began, code = perf_counter(), "OK"
        try:
            response = await self._answered(request, handler)
        except Exception as error:
            form = self._forms.get(request.match_info.handler, refusal)
            response, code = form(request, error)
        finally:
            self._open -= 1
            if not self._open:
                self._quiet.set()
        name = request.match_info.route.name
        if self._count is not None and name is not None:
            self._count(name, code, perf_counter() - began)
        return response

    async def _answered(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Return the answer of a route, or of the rules of the port."""
        if self._stopping:
            raise ShuttingDown
        if self._rules is not None:
            self._rules.check(request)
            preflight = self._rules.preflight(request)
            if preflight is not None:
                return preflight
        return await handler(request)

    async def _prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """Complete the headers of an answer, before it is sent or begins to be streamed."""
        response.headers["Server"] = SERVER
        if self._rules is not None:
            self._rules.complete(request, response)
        if self._stopping or not request.content.at_eof():
            # What was not read would be taken for the next request.
            response.force_close()
            response.headers["Connection"] = "close"


def encoded(request: web.BaseRequest, answer: Message) -> web.Response:
    """Return a message in the encoding of the request; in JSON where that is neither of the two."""
    if request.content_type == PROTOBUF:
        return web.Response(body=answer.SerializeToString(), content_type=PROTOBUF)
    return web.Response(body=MessageToJson(answer, indent=None).encode(), content_type=JSON)


def refusal(request: web.Request, error: Exception) -> tuple[web.Response, str]:
    """Return the answer to a request that failed, and gRPC's name of its status code."""
    if isinstance(error, web.HTTPException):
        error = _unrouted(error)
    if isinstance(error, HttpError):
        status = to_status(error.error)
        number, headers = error.status, error.headers
    else:
        if not isinstance(error, StoreError):
            resource = request.match_info.route.resource
            error = internal(error, f"{request.method} {resource.canonical if resource else '?'}")
        status = to_status(error, EXPORT_CODES)
        number, headers = STATUSES.get(status.code, 500), {}
        if number == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if number == 503 and error.retry_delay is not None:
            headers["Retry-After"] = str(math.ceil(error.retry_delay))
    response = encoded(request, status)
    response.set_status(number)
    response.headers.update(headers)
    return response, code_pb2.Code.Name(status.code)


def _unrouted(error: web.HTTPException) -> HttpError:
    """Return aiohttp's error, which is a page of text, as one of ours."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ",".join(sorted(error.allowed_methods))
        return HttpError(405, FieldInvalid("method", f"must be {allowed}"), Allow=allowed)
    if isinstance(error, web.HTTPNotFound):
        return HttpError(404, FieldInvalid("path", "nothing is served here"))
    return HttpError(error.status, FieldInvalid("request", error.reason))


def _limit_silence(listener: socket.socket) -> None:
    """Have the kernel close connections whose client does not read what was sent, or is gone.

    Connections inherit the options. A stream that has nothing to send would not notice that its client is gone.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(IDLE_SECONDS * 1000))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_SECONDS // 2)
