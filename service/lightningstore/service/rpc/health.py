"""grpc.health.v1.Health. It needs no token, so no caller may be able to delay others.

gRPC's own servicer writes to each watcher under a lock that a change of status needs too: one watcher that reads
nothing then blocks every change, and with it the shutdown.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
from grpc_health.v1 import health_pb2
from lightningstore.service.rpc import handlers
from lightningstore.service.rpc.calls import Calls, Context, Streams, decode
from lightningstore.service.rules.errors import ShuttingDown
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE

SERVICE = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
#: Prefix of the service names that stand for namespaces.
OF_NAMESPACE = f"{handlers.SERVICE.full_name}/"
#: Maximum of open watches, which count apart from the streams that need a token.
MAX_WATCHES = 1000
#: Size limit of a request, which holds the name of a service.
MAX_REQUEST_BYTES = 4096

_Response = health_pb2.HealthCheckResponse


class Health:
    """The status of each service, and its watchers."""

    def __init__(self, usable: Callable[[str], bool | None]) -> None:
        """Take what tells whether a namespace is usable, None if there is no such namespace.

        The server as a whole and its services have the status of the default namespace. One other namespace whose
        storage fails must not make a supervisor restart the server, which serves the rest. That namespace has a status
        of its own.
        """
        self._services: frozenset[str] = frozenset()
        self._usable = usable
        self._stopping = False
        #: One event a watcher, set when there may be a status to send. The status is read when the watcher is ready
        #: to send it: a slow watcher skips statuses, and no queue grows.
        self._changes: set[asyncio.Event] = set()

    def serve(self, services: tuple[str, ...]) -> None:
        """Report these services as SERVING or NOT_SERVING, and any other except namespaces as unknown."""
        self._services = frozenset(services)
        self.wake()

    def stop(self) -> None:
        """Report NOT_SERVING from now on; watches end once they have sent it."""
        self._stopping = True
        self.wake()

    def status(self, service: str) -> _Response.ServingStatus | None:
        """Return the status of a service; None where there is no such service."""
        name = DEFAULT_NAMESPACE
        if service not in self._services:
            if not service.startswith(OF_NAMESPACE):
                return None
            name = service.removeprefix(OF_NAMESPACE)
        usable = self._usable(name)
        if usable is None or not self._services:
            return None
        serving = usable and not self._stopping
        return _Response.SERVING if serving else _Response.NOT_SERVING

    async def watch(self, request: health_pb2.HealthCheckRequest) -> AsyncIterator[bytes]:
        """Yield the status of a service, serialised, now and after each change. Raises ShuttingDown."""
        change = asyncio.Event()
        self._changes.add(change)
        sent = None
        try:
            while True:
                change.clear()
                status = self.status(request.service)
                if status is None:
                    status = _Response.SERVICE_UNKNOWN
                if status != sent:
                    sent = status
                    yield _Response(status=status).SerializeToString()
                elif self._stopping:
                    raise ShuttingDown
                else:
                    await change.wait()
        finally:
            self._changes.discard(change)

    def wake(self) -> None:
        """Send watchers the statuses that have changed. Waits for no watcher."""
        for change in self._changes:
            change.set()


def handler(health: Health, closing: Callable[[], bool]) -> grpc.GenericRpcHandler:
    """Return the handler of the service. `closing` tells whether the server is shutting down."""
    request_type = health_pb2.HealthCheckRequest
    calls = Calls(MAX_REQUEST_BYTES, Streams(MAX_WATCHES), closing)

    async def check(data: bytes, context: Context) -> bytes:
        status = health.status(decode(request_type, data, MAX_REQUEST_BYTES).service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "the server has no such service")
        return _Response(status=status).SerializeToString()

    checked = calls.answered(f"{SERVICE}/Check", check)
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Check": grpc.unary_unary_rpc_method_handler(checked),
            "Watch": calls.server_stream(f"{SERVICE}/Watch", request_type, health.watch),
        },
    )
