"""Where the HTTP port listens, what the server says about it, and what several processes and servers serve on it."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightningstore.client import AsyncLightningStore
from lightningstore.service.server.addresses import AddressInUse
from lightningstore.service.server.config import DEFAULT_HTTP_PORT, Config
from lightningstore.service.server.server import Server, open_store, start_server

from tests.integration.http_calls import base64_of, call, error, stream
from tests.integration.process import ENVIRONMENT, Process, run, serve
from tests.integration.test_otlp_http import send
from tests.integration.test_several_servers import NAMES, machine
from tests.machines import Machines
from tests.ports import free_port

__all__ = ["machine"]

pytestmark = pytest.mark.asyncio

ENQUEUE = {"rollouts": [{"inputJson": base64_of({"q": 2})}]}


@contextmanager
def taken() -> Iterator[int]:
    """Listen on a port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def link(process: Process) -> str:
    """Return the link that a server prints, "" if it prints none."""
    assert process.process.stdout is not None
    while line := (await asyncio.wait_for(process.process.stdout.readline(), 20)).decode():
        if line.startswith("console: "):
            return line.removeprefix("console: ").strip()
        if line.startswith("next: "):
            break
    return ""


def port_in(url: str) -> int:
    return int(url.rpartition(":")[2])


async def test_server_prints_its_link(tmp_path: Path) -> None:
    port = free_port()
    process = await serve(
        "--port", "0", "--backend", "memory", "--http-port", str(port), folder=tmp_path
    )
    assert await link(process) == f"http://127.0.0.1:{port}"
    assert (await call(port, "EnqueueRollouts", ENQUEUE)).status == 200
    assert await process.stop() == 0


async def test_port_zero_serves_no_http(tmp_path: Path) -> None:
    process = await serve("--port", "0", "--backend", "memory", "--http-port", "0", folder=tmp_path)
    assert await link(process) == ""
    assert await process.stop() == 0
    config = Config(backend="memory", port=0, http_port=0, grace=0.1)
    server = Server(await open_store(config), config)
    await server.start()
    assert (server.http_port, server.http, server.metrics) == (0, None, None)
    async with AsyncLightningStore(server.address) as store:
        assert (await store.get_server_info()).http_port is None
    await server.stop(0.1)


@pytest.mark.parametrize("host", ["[::1]", "::1"])
async def test_address_of_ipv6_may_have_brackets(host: str) -> None:
    if not socket.has_ipv6:
        pytest.skip("this system has no IPv6")
    config = Config(host=host, backend="memory", port=0, metrics_host=host, metrics_port=0)
    server = await start_server(config)
    async with AsyncLightningStore(server.address) as store:
        info = await store.get_server_info()
    assert server.address.startswith("[::1]:")
    assert info.http_port == server.http_port
    for port, path in ((server.http_port, "/healthz"), (server.metrics_port, "/metrics")):
        reader, writer = await asyncio.open_connection("::1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: [::1]:{port}\r\n\r\n".encode())
        assert await asyncio.wait_for(reader.readline(), 30) == b"HTTP/1.1 200 OK\r\n"
        writer.close()
    await server.stop(0)


async def test_server_that_listens_on_a_free_port_does_so_for_http(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """So servers of tests never collide, and say nothing about it."""
    config = Config(backend="memory", port=0, grace=0.1)
    servers = [await start_server(config) for _ in range(2)]
    ports = {server.http_port for server in servers}
    assert len(ports) == 2
    assert not ports & {0, DEFAULT_HTTP_PORT}
    assert not [r for r in caplog.records if "HTTP" in r.getMessage()]
    for server in servers:
        await server.stop(0.1)


async def test_server_starts_on_another_port_if_the_default_is_taken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, "http_port_is_chosen", False)
    with taken() as port:
        config = Config(backend="memory", port=free_port(), http_port=port, grace=0.1)
        server = await start_server(config)
    assert server.http_port not in (0, port)
    (line,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert line.startswith(f"port {port} is not free")
    assert f"HTTP is served on port {server.http_port}; --http-port" in line
    assert (await call(server.http_port, "EnqueueRollouts", ENQUEUE)).status == 200
    await server.stop(0.1)


async def test_default_port_is_used_if_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, "http_port_is_chosen", False)
    config = Config(backend="memory", port=free_port(), http_port=free_port(), grace=0.1)
    server = await start_server(config)
    assert server.http_port == config.http_port
    async with AsyncLightningStore(server.address) as store:
        assert (await store.get_server_info()).http_port == config.http_port
    await server.stop(0.1)


async def test_chosen_port_that_is_taken_is_an_error(tmp_path: Path) -> None:
    with taken() as port:
        config = Config(db=tmp_path / "x.db", port=0, http_port=port)
        with pytest.raises(AddressInUse, match=str(port)):
            await start_server(config)
        assert not (tmp_path / "x.db").exists()
        code, _, errors = await run(
            "serve", "--port", "0", "--http-port", str(port), folder=tmp_path
        )
        assert code == 1
        assert f"cannot listen on 127.0.0.1:{port}" in errors


async def test_calls_are_counted_only_on_request() -> None:
    """Counting costs time in each call of gRPC, and the port is open by default."""
    for settings, counts in (
        ({}, False),
        ({"count_calls": True}, True),
        ({"metrics_port": 0}, True),
        ({"metrics_port": 0, "count_calls": False}, False),
    ):
        config = Config(backend="memory", port=0, grace=0.1, **settings)
        server = Server(await open_store(config), config)
        await server.start()
        assert (server.metrics in server._interceptors) == counts
        await call(server.http_port, "GetStatistics")
        page = (await send(server.http_port, "GET", "/metrics")).body
        assert (b'lightningstore_calls_total{code="OK",method="GetStatistics"}' in page) == counts
        assert b"lightningstore_queue_depth" in page
        await server.stop(0.1)


async def test_processes_share_the_port(tmp_path: Path) -> None:
    options = ("--data", "data", "--processes", "2", "--port", "0", "--http-port")
    with taken() as free:  # and not one that is kept, which several processes cannot share
        pass
    for chosen in (str(free), None):
        arguments = (*options, chosen) if chosen else options[:-1]
        process = await serve(*arguments, folder=tmp_path, http=True)
        port = port_in(await link(process))
        assert chosen is None or port == int(chosen)
        path = "/lightningstore.v1.NamespaceService/CreateNamespace"
        for name in ("a", "b", "c"):
            if chosen:
                answer = await call(port, path, {"namespace": {"name": name}})
                assert answer.status == 200
            for _ in range(4):  # Each call has a connection, which leads to either process.
                headers = {"x-lightning-namespace": name}
                assert (await call(port, "EnqueueRollouts", ENQUEUE, **headers)).status == 200
        # Either process would answer for itself alone.
        assert (await send(port, "GET", "/metrics")).status == 404
        assert (await send(port, "GET", "/readyz")).status == 200
        assert await process.stop() == 0


async def test_every_server_answers_for_every_namespace(machine: Machines) -> None:
    for name in NAMES:
        owner = await machine.owner(name)
        inside = {"x-lightning-namespace": name}
        for index, server in enumerate(machine.servers):
            port, remote = server.http_port, index != owner
            address = machine.servers[owner].address
            answer = await call(port, "EnqueueRollouts", ENQUEUE, **inside)
            assert answer.status == 200, answer.body
            assert (answer.headers.get("Trailer-x-lightning-owner") == address) == remote
            answer = await call(port, "GetRollout", {"rolloutId": "none"}, **inside)
            assert error(answer) == (404, "not_found", "ROLLOUT_NOT_FOUND")
            async with stream(
                port, "WatchRollouts", **{"Connect-Timeout-Ms": "300", **inside}
            ) as found:
                answers, last = await found.rest()
            assert set(json.loads(answers[0])) == {"storeId"}
            assert last["error"]["code"] == "deadline_exceeded"
            path = "/lightningstore.v1.NamespaceService/GetNamespace"
            answer = await call(port, path, {"name": name})
            assert answer.status == 200, answer.body
            assert json.loads(answer.body)["namespace"]["name"] == name


async def test_options_are_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    monkeypatch.setitem(ENVIRONMENT, "LIGHTNINGSTORE_HTTP_PORT", str(port))
    process = await serve("--port", "0", "--backend", "memory", folder=tmp_path)
    assert port_in(await link(process)) == port
    assert await process.stop() == 0
