"""The contract over HTTP by the Connect protocol, for clients without gRPC: curl, browsers, scripts.

A call is `POST /package.Service/Method` in JSON or protobuf; the answers of a stream have envelopes. The bytes of a
request go through the handlers of gRPC (rpc/dispatch.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from time import perf_counter
from typing import Any, NamedTuple

from aiohttp import web
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import code_pb2, status_pb2
from lightningstore.service.engine.budget import Budget
from lightningstore.service.http import bodies, connect_wire, json_answers, json_messages
from lightningstore.service.http.connect_wire import Form, Reply, Written
from lightningstore.service.http.server import Count, HttpError
from lightningstore.service.rpc.calls import internal
from lightningstore.service.rpc.dispatch import CallContext, CallFailed, Dispatcher, refused
from lightningstore.service.rpc.handlers import path_of
from lightningstore.service.rpc.status import to_status
from lightningstore.service.rules.errors import FieldInvalid, StoreError
from lightningstore.service.rules.texts import SHOWN_LENGTH, shortened

#: Answers in JSON of this size in protobuf are compressed, for clients that accept it. Smaller ones fit into a packet.
MIN_COMPRESSED_BYTES = 1024
_ROUTE = r"/{service:\w+(?:\.\w+)+}/{method:\w+}"


class Method(NamedTuple):
    """A method of the contract."""

    path: str
    request: type[Message]
    answer: type[Message]
    streams_in: bool
    streams_out: bool

    @classmethod
    def of(cls, method: MethodDescriptor) -> Method:
        """Return the method that a descriptor describes."""
        return cls(
            path_of(method),
            GetMessageClass(method.input_type),
            GetMessageClass(method.output_type),
            method.client_streaming,
            method.server_streaming,
        )


class _Ended(Exception):
    """The call ends with a status that no error of the store stands for."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.status = status_pb2.Status(code=code, message=message)


class Connect:
    """Serves all methods of some services."""

    def __init__(
        self,
        services: Iterable[ServiceDescriptor],
        dispatcher: Dispatcher,
        limit: int,
        budget: Budget,
        count: Count | None = None,
    ) -> None:
        """Prepare to serve.

        Args:
            services: The services of the contract.
            dispatcher: Finds the handlers of their methods.
            limit: Maximum size of a request in bytes.
            budget: Bytes that the bodies of all requests may hold.
            count: Counts the calls that reach no handler; None: calls are not counted.
        """
        methods = [Method.of(method) for service in services for method in service.methods]
        self._methods = {method.path: method for method in methods}
        self._dispatcher = dispatcher
        self._limit = limit
        self._bodies = bodies.Bodies("connect", limit, budget)
        self._count = count

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The route of all methods, also of those that do not exist."""
        return (web.route("*", _ROUTE, self._answer, expect_handler=bodies.expect_later),)

    def close(self) -> None:
        """Read no more bodies."""
        self._bodies.close()

    def refusal(self, request: web.Request, error: Exception) -> tuple[web.Response, str]:
        """Return the answer to a request that reached no method, and gRPC's name of its status code."""
        status = _status_of(error, request.path)
        form = None if isinstance(error, HttpError) else connect_wire.form_of(request)
        response = connect_wire.refusal(form, status)
        if isinstance(error, HttpError):
            response.set_status(error.status)
            response.headers.update(error.headers)
        return response, code_pb2.Code.Name(status.code)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = "/{service}/{method}".format_map(request.match_info)
        reply, began = Reply(request), perf_counter()
        context = CallContext(
            connect_wire.metadata_of(request),
            request.remote or "somebody",
            is_gone=lambda: request.transport is None or request.transport.is_closing(),
            begin=reply.begin,
        )
        try:
            context.deadline = connect_wire.deadline_of(request)
            async with asyncio.timeout_at(context.deadline):
                await self._serve(path, request, context, reply)
                return await reply.end(context.trailers)
        except CallFailed:
            return await reply.fail(context.status(), context.trailers)
        except ConnectionError:
            return reply.abandoned()
        except Exception as error:
            return await self._fail(path, reply, error, perf_counter() - began)

    async def _fail(
        self, path: str, reply: Reply, error: Exception, seconds: float
    ) -> web.StreamResponse:
        """End a call that no handler has ended."""
        status = _status_of(error, path)
        if self._count is not None and path in self._methods:
            self._count(path.rpartition("/")[2], code_pb2.Code.Name(status.code), seconds)
        if isinstance(error, HttpError):
            return await reply.fail(status, (), error.status, error.headers)
        return await reply.fail(status)

    async def _serve(
        self, path: str, request: web.Request, context: CallContext, reply: Reply
    ) -> None:
        """Serve one call. Raises CallFailed, HttpError, StoreError, _Ended, TimeoutError."""
        method = self._methods.get(path)
        if method is None:
            text = f"the server has no method {shortened(path, SHOWN_LENGTH)}"
            raise _Ended(code_pb2.UNIMPLEMENTED, text)
        if request.method != "POST":
            raise HttpError(405, FieldInvalid("method", "must be POST"), Allow="POST")
        streams = method.streams_in or method.streams_out
        form = connect_wire.checked_form(request, streams=streams)
        handler: Any = await self._dispatcher.find(path, context.invocation_metadata())
        if handler.request_streaming and handler.response_streaming:
            await refused(handler, context)
        if method.streams_in:
            text = f"{path} takes a stream of requests, which this port does not: use gRPC"
            raise _Ended(code_pb2.UNIMPLEMENTED, text)
        data = await self._read(request, form, method)
        if method.streams_out:
            async with aclosing(handler.unary_stream(data, context)) as answers:
                async for answer in answers:
                    await reply.send(await self._written(answer, form, method, reply))
        else:
            answer = await handler.unary_unary(data, context)
            reply.body = await self._written(answer, form, method, reply)

    async def _read(self, request: web.Request, form: Form, method: Method) -> bytes:
        """Return the request, serialised. Its text counts against the limit of bodies until then."""
        limit = min(self._limit, json_messages.MAX_BYTES) if form.is_json else self._limit
        body = await bodies.read(request, limit + form.overhead)
        body, is_compressed = connect_wire.opened(body, form, request)
        async with self._bodies.decompressed(body, is_compressed=is_compressed) as text:
            if not form.is_json:
                return text
            is_generated = connect_wire.is_generated(request)
            return await self._bodies.run(
                4 * len(text),
                lambda: json_messages.serialised(text, method.request, ignore_unknown=is_generated),
            )

    async def _written(self, answer: bytes, form: Form, method: Method, reply: Reply) -> Written:
        """Return an answer in the form of the call."""
        if not form.is_json:
            return Written([answer])
        parts = json_answers.parts(answer, method.answer)
        is_compressed = reply.accepts_gzip and len(answer) >= MIN_COMPRESSED_BYTES
        if is_compressed:
            parts = bodies.compressed(parts)
        return Written(await self._bodies.made(4 * len(answer), parts), is_compressed)


def _status_of(error: Exception, path: str) -> status_pb2.Status:
    """Return the status of a call that no handler has ended."""
    if isinstance(error, _Ended):
        return error.status
    if isinstance(error, TimeoutError):
        return status_pb2.Status(
            code=code_pb2.DEADLINE_EXCEEDED, message="the deadline of the call has passed"
        )
    if isinstance(error, HttpError):
        error = error.error
    return to_status(error if isinstance(error, StoreError) else internal(error, path))
