"""The port that Prometheus scrapes: formats, methods, and clients that are slow or do not speak HTTP."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store

pytestmark = pytest.mark.asyncio

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@pytest_asyncio.fixture
async def server() -> AsyncIterator[Server]:
    config = Config(backend="memory", port=0, grace=0.1, metrics_port=0)
    server = Server(await open_store(config), config)
    await server.start()
    yield server
    await server.stop(0.1)


async def ask(
    server: Server, path: str = "/metrics", method: str = "GET", **headers: str
) -> tuple[int, Any, bytes]:
    """Return the status, the headers and the body as it was sent."""
    assert server.metrics is not None
    url = f"http://127.0.0.1:{server.metrics_port}{path}"
    async with (
        aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=["Accept", "Accept-Encoding"]
        ) as session,
        session.request(method, url, headers=headers) as answer,
    ):
        return answer.status, answer.headers, await answer.read()


async def test_text_format_is_the_default_and_open_metrics_is_negotiated(server: Server) -> None:
    status, headers, body = await ask(server)
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'\nlightningstore_storage_usable{namespace="default"} 1.0\n' in body
    assert not body.endswith(b"# EOF\n")
    status, headers, body = await ask(server, Accept=OPEN_METRICS)
    assert status == 200
    assert headers["Content-Type"].startswith(f"{OPEN_METRICS}; charset=utf-8")
    assert body.endswith(b"# EOF\n")


async def test_body_is_compressed_where_the_scraper_accepts_it(server: Server) -> None:
    _, headers, body = await ask(server)
    assert "Content-Encoding" not in headers
    _, headers, packed = await ask(server, **{"Accept-Encoding": "deflate, gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert len(packed) < len(body) / 2
    assert b"lightningstore_queue_depth" in gzip.decompress(packed)


async def test_names_restrict_what_is_returned(server: Server) -> None:
    assert server.metrics is not None
    server.metrics.count("GetRollout", "OK", 0.001)
    names = "name[]=lightningstore_calls_total&name[]=lightningstore_call_seconds_sum"
    status, _, body = await ask(server, f"/metrics?{names}")
    samples = [line for line in body.splitlines() if not line.startswith(b"#")]
    assert (status, sorted(samples)) == (
        200,
        [
            b'lightningstore_call_seconds_sum{method="GetRollout"} 0.001',
            b'lightningstore_calls_total{code="OK",method="GetRollout"} 1.0',
        ],
    )


@pytest.mark.parametrize("path", ["/", "/metrics/", "/anything/else"])
async def test_every_path_of_the_port_has_the_metrics(server: Server, path: str) -> None:
    status, _, body = await ask(server, path)
    assert status == 200
    assert b"lightningstore_storage_usable" in body


async def test_browsers_get_no_icon(server: Server) -> None:
    status, _, body = await ask(server, "/favicon.ico")
    assert (status, body) == (200, b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
async def test_other_methods_are_not_allowed(server: Server, method: str) -> None:
    status, headers, _ = await ask(server, method=method)
    assert status == 405
    assert set(headers["Allow"].split(",")) == {"GET", "OPTIONS"}


async def test_options_name_the_methods(server: Server) -> None:
    status, headers, body = await ask(server, method="OPTIONS")
    assert (status, body) == (200, b"")
    assert set(headers["Allow"].split(",")) == {"GET", "OPTIONS"}


async def test_clients_that_say_nothing_hold_up_nobody(server: Server) -> None:
    assert server.metrics is not None
    idle = [await asyncio.open_connection("127.0.0.1", server.metrics_port) for _ in range(50)]
    for _, writer in idle[::2]:
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: ")
    assert (await asyncio.wait_for(ask(server), 10))[0] == 200
    for _, writer in idle:
        writer.close()
