"""What all ports that serve HTTP have in common: limits on clients, errors, and how they start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from lightningstore.service.http import server as http
from lightningstore.service.http.server import HttpServer
from lightningstore.service.rules.errors import Busy, RolloutNotFound
from lightningstore.service.server.addresses import AddressInUse
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store, start_server

from tests.integration.test_otlp_http import JSON, PROTOBUF, Answer, send

pytestmark = pytest.mark.asyncio


class Page:
    """A service of one route."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.is_closed = False

    @property
    def routes(self) -> list[web.RouteDef]:
        return [web.post("/page", self.answer, name="Page")]

    def close(self) -> None:
        self.is_closed = True


class Counted(list[tuple[str, str]]):
    """The calls that were counted."""

    def __call__(self, name: str, code: str, seconds: float) -> None:
        assert seconds >= 0
        self.append((name, code))


@pytest_asyncio.fixture
async def metrics(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    """A server whose clients may be idle for half a second."""
    monkeypatch.setattr(http, "IDLE_SECONDS", 0.5)
    config = Config(backend="memory", port=0, grace=0.1, metrics_port=0)
    server = Server(await open_store(config), config)
    await server.start()
    yield server
    await server.stop(0.1)


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_answered_in_the_form_of_other_errors(
    metrics: Server, data: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", metrics.metrics_port)
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 400 " in head.splitlines()[0]
    assert b"Server: lightningstore" in head
    assert b"aiohttp" not in answer
    status = json.loads(body)
    assert status["code"] == 3
    assert "not HTTP/1.1: " in status["message"]
    assert status["details"][0]["reason"] == "ERROR_REASON_FIELD_INVALID"


@pytest.mark.parametrize("head", [b"", b"GET /metrics HTTP/1.1\r\nHost: "])
async def test_clients_that_do_not_finish_their_headers_are_cut_off(
    metrics: Server, head: bytes
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", metrics.metrics_port)

    async def drip() -> None:  # Each byte proves that the client is alive, and gains it no time.
        writer.write(head)
        while head:
            writer.write(b"x")
            await asyncio.sleep(0.05)

    dripping = asyncio.create_task(drip())
    with contextlib.suppress(ConnectionResetError):  # A byte that came as the server hung up.
        assert await asyncio.wait_for(reader.read(), 30) == b""
    dripping.cancel()
    writer.close()


async def test_clients_that_read_nothing_are_cut_off(metrics: Server) -> None:
    """However many requests they send: what waits for them in the server does not grow with that."""
    assert metrics.metrics is not None
    for n in range(40):  # An answer of 70 KB.
        metrics.metrics.count(f"Method{n}", "OK", 0.1)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", metrics.metrics_port))
        client.setblocking(False)
        loop = asyncio.get_running_loop()

        async def ask() -> None:
            while True:
                await loop.sock_sendall(client, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 100)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(ask(), 50)


async def nothing(_: web.Request) -> web.Response:
    return web.Response()


async def answered(answer: Any, path: str = "/page", kind: str = JSON) -> tuple[Answer, Counted]:
    counted = Counted()
    server = HttpServer([Page(answer)], counted)
    await server.start("127.0.0.1", 0)
    try:
        return await send(server.port, "POST", path, b"{}", {"Content-Type": kind}), counted
    finally:
        await server.stop(1)


@pytest.mark.parametrize("kind", [JSON, PROTOBUF])
@pytest.mark.parametrize(
    ("error", "status", "reason", "code"),
    [
        (Busy("later"), 503, "BUSY", "UNAVAILABLE"),
        (RolloutNotFound("ro-1"), 404, "ROLLOUT_NOT_FOUND", "NOT_FOUND"),
        (ZeroDivisionError("secret"), 500, "INTERNAL", "INTERNAL"),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_errors_of_a_route_become_answers_with_a_reason(
    kind: str, error: Exception, status: int, reason: str, code: str
) -> None:
    async def fail(_: web.Request) -> web.Response:
        raise error

    answer, counted = await answered(fail, kind=kind)
    assert (answer.status, answer.reason()) == (status, reason)
    assert answer.headers["Content-Type"].startswith(kind)
    assert b"secret" not in answer.body
    assert counted == [("Page", code)]


async def test_answers_can_be_streamed_and_close_the_connection_where_a_body_is_unread() -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"a")
        await response.write(b"b")
        await response.write_eof()
        return response

    server = HttpServer([Page(stream)])
    await server.start("127.0.0.1", 0)
    for size, connection in ((0, None), (1 << 20, "close")):
        answer = await send(server.port, "POST", "/page", bytes(size))
        assert (answer.status, answer.body) == (200, b"ab")
        assert answer.headers["Server"] == "lightningstore"
        assert answer.headers.get("Connection") == connection
    await server.stop(1)


async def test_paths_without_a_route_are_not_counted_as_calls() -> None:
    answer, counted = await answered(nothing, "/elsewhere")
    assert (answer.status, counted) == (404, [])
    answer, counted = await answered(nothing)
    assert (answer.status, counted) == (200, [("Page", "OK")])


async def test_services_are_closed_with_their_port_and_when_it_is_taken() -> None:
    first, second = Page(nothing), Page(nothing)
    server = HttpServer([first])
    await server.start("127.0.0.1", 0)
    with pytest.raises(OSError):
        await HttpServer([second]).start("127.0.0.1", server.port)
    assert (first.is_closed, second.is_closed) == (False, True)
    await server.stop(0)
    assert first.is_closed


async def test_metrics_port_that_is_taken_is_reported_before_any_file_is_touched(
    tmp_path: Path,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(db=tmp_path / "x.db", port=0, metrics_port=port)
        with pytest.raises(AddressInUse, match=f"for metrics on 127.0.0.1:{port}"):
            await start_server(config)
    assert list(tmp_path.iterdir()) == []


async def test_ports_are_free_again_where_the_last_one_could_not_be_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = Config(backend="memory", port=0, otlp_http_port=0, metrics_port=port)
        store = await open_store(config)
        with pytest.raises(AddressInUse):
            await Server(store, config).start()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", store.info.otlp_http_port)
        await store.close()


async def test_metrics_can_be_scraped_until_the_last_call_has_ended() -> None:
    config = Config(backend="memory", port=0, metrics_port=0, otlp_http_port=0)
    server = Server(await open_store(config), config)
    await server.start()
    http_port = server.directory.default.info.otlp_http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n".encode())
    await reader.readuntil(b"100 Continue\r\n\r\n")  # It has begun.
    stop = asyncio.create_task(server.stop(30))
    while not server.http._otlp._stopping:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    assert (await send(server.metrics_port, "GET", "/metrics")).status == 200
    writer.write(b"{}")
    assert (await reader.readline()).split()[1] == b"200"
    await asyncio.wait_for(stop, 30)
    writer.close()
