"""A server whose answers and faults a test decides, and a real one in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2
from lightningstore.client._transport.methods import SERVICE
from lightningstore.client.errors import DETAILS_KEY
from lightningstore.v1 import completion_pb2

from tests.ports import port_of, reserve


class Seen(NamedTuple):
    """A call as the server saw it."""

    method: str
    request: Any
    metadata: dict[str, Any]
    time_remaining: float | None


def rich(
    code: grpc.StatusCode, reason: str = "", retry: float | None = None, **metadata: str
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """Return what ends a call with a rich status."""
    status = status_pb2.Status(code=code.value[0], message=f"{code.name} it is")
    details: list[Any] = [
        error_details_pb2.ErrorInfo(reason=reason, domain="lightningstore", metadata=metadata)
    ]
    if retry is not None:
        info = error_details_pb2.RetryInfo()
        info.retry_delay.FromMilliseconds(int(retry * 1000))
        details.append(info)
    for detail in details:
        holder = AnyMessage()
        holder.Pack(detail)
        status.details.append(holder)
    return code, status.message, ((DETAILS_KEY, status.SerializeToString()),)


class Fault(Exception):
    """Raised by a handler to end its call with an error."""

    def __init__(self, code: grpc.StatusCode, text: str = "", trailers: Any = ()) -> None:
        super().__init__(text)
        self.code, self.text, self.trailers = code, text, trailers


def unavailable() -> Fault:
    return Fault(grpc.StatusCode.UNAVAILABLE, "not now")


class FakeServer:
    """Answers each method by a function of the test: `server.on["GetRollout"] = lambda request: ...`.

    A function may raise Fault. That of a server stream is a generator; that of IngestSpans gets an iterator.
    """

    def __init__(self) -> None:
        self.on: dict[str, Callable[..., Any]] = {}
        self.seen: list[Seen] = []
        self.kept = reserve()
        self.port = port_of(self.kept)
        self._lock = threading.Lock()
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def requests(self, method: str) -> list[Any]:
        return [seen.request for seen in self.seen if seen.method == method]

    def start(self) -> None:
        """Listen, on the same port as before."""
        server = grpc.server(
            ThreadPoolExecutor(32),
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 66 << 20)],
        )
        handlers = {method.name: self._handler(method) for method in SERVICE.methods}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, handlers),)
        )
        server.add_insecure_port(self.address)
        server.start()
        self._server = server

    def stop(self) -> None:
        """Break all connections."""
        if self._server is not None:
            self._server.stop(0).wait()
            self._server = None

    def _note(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        with self._lock:
            metadata = dict(context.invocation_metadata())
            self.seen.append(Seen(method, request, metadata, context.time_remaining()))

    def _handler(self, method: Any) -> Any:
        takes = GetMessageClass(method.input_type)
        if method.client_streaming:
            kind, wrapped = grpc.stream_unary_rpc_method_handler, self._plain(method.name)
        elif method.server_streaming:
            kind, wrapped = grpc.unary_stream_rpc_method_handler, self._stream(method.name)
        else:
            kind, wrapped = grpc.unary_unary_rpc_method_handler, self._plain(method.name)
        return kind(wrapped, takes.FromString, lambda answer: answer.SerializeToString())

    def _plain(self, name: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            self._note(name, request, context)
            try:
                return self.on[name](request)
            except Fault as fault:
                context.set_trailing_metadata(fault.trailers)
                context.abort(fault.code, fault.text)

        return handle

    def _stream(self, name: str) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            self._note(name, request, context)
            try:
                for answer in self.on[name](request):
                    if answer is None:
                        context.send_initial_metadata(())
                    else:
                        yield answer
            except Fault as fault:
                context.set_trailing_metadata(fault.trailers)
                context.abort(fault.code, fault.text)

        return handle


_SERVE = """
import asyncio, signal, sys
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import start_server

async def main(port, db):
    config = Config(backend="sqlite", port=port, http_port=0, db=db, durability="relaxed")
    server = await start_server(config)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(server.port, flush=True)
    await stop.wait()
    await server.stop(1)

asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
"""


class RealServer:
    """`lightningstore serve` over SQLite in a process of its own, which can be killed and come back."""

    def __init__(self, folder: Path) -> None:
        self._db = folder / "client.db"
        self._process: subprocess.Popen[str] | None = None
        self.kept = reserve()
        self.port = port_of(self.kept)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE, str(self.port), str(self._db)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        assert int(self._process.stdout.readline()) == self.port

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._end("kill")

    def stop(self) -> None:
        """End it in good order."""
        self._end("terminate")

    def _end(self, how: str) -> None:
        process, self._process = self._process, None
        if process is not None:
            getattr(process, how)()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def faults_first(count: int, answer: Any, fault: Fault | None = None) -> Any:
    """Return a handler that fails so often before it answers."""
    left = [count]

    def handle(request: Any) -> Any:
        del request
        if left[0]:
            left[0] -= 1
            raise fault or unavailable()
        return answer

    return handle


def watched(*numbers: int, through: int) -> Any:
    return completion_pb2.WatchRolloutsResponse(
        rollouts=[{"rollout_id": f"r{n}", "completion_number": n} for n in numbers],
        through_completion_number=through,
        store_id="store-1",
    )
