"""OTLP over HTTP from those who do not keep to it, and at shutdown: no defect, no noise, nothing half done."""

from __future__ import annotations

import asyncio
import gzip
import random
import time

import aiohttp
import pytest

from tests.contract.conftest import World
from tests.contract.helpers import names
from tests.integration.test_otlp_http import (
    JSON,
    PROTOBUF,
    SPAN,
    TRACE,
    as_json,
    ids,
    json_span,
    port_of,
    post,
    world,
)
from tests.integration.test_otlp_wire import attribute, request, span
from tests.integration.test_otlp_wire import owner as attributes_of

__all__ = ["world"]  # the fixture

pytestmark = pytest.mark.asyncio


def mutations(seed: int, good: bytes) -> bytes:
    """Return something like a request."""
    chance = random.Random(seed)
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(data) or 1)
        match chance.randrange(4):
            case 0:
                data[at : at + 1] = bytes([chance.randrange(256)])
            case 1:
                del data[at : at + chance.randint(1, 9)]
            case 2:
                data[at:at] = chance.choice(
                    [b"[", b"]", b"{", b"null", b"-1", b"1e999", b'"', b"\xff"]
                )
            case _:
                data[at:at] = data[chance.randrange(len(data) or 1) :][: chance.randint(1, 40)]
    return bytes(data)


async def test_no_body_whatever_makes_a_defect(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    own = await ids(world)
    link = {"traceId": TRACE, "spanId": SPAN}
    values = [{"key": "k", "value": {"intValue": "5"}}, {"key": "d", "value": {"doubleValue": 0.5}}]
    described = [json_span(n, kind=1, links=[link], attributes=values) for n in "ab"]
    goods = {
        JSON: as_json(own, *described),
        PROTOBUF: request(
            span("a", attribute("k", 5)), span("b"), resource=attributes_of(own)
        ).SerializeToString(),
    }
    found: dict[int, int] = {}
    url = f"http://127.0.0.1:{port_of(world)}/v1/traces"
    async with aiohttp.ClientSession() as session:
        for seed in range(600):
            kind = (JSON, PROTOBUF)[seed % 2]
            body, headers = mutations(seed, goods[kind]), {"Content-Type": kind}
            if seed % 5 == 0:
                body = mutations(-seed, gzip.compress(body))
                headers["Content-Encoding"] = "gzip"
            async with session.post(url, data=body, headers=headers) as answer:
                await answer.read()
                found[answer.status] = found.get(answer.status, 0) + 1
    assert set(found) == {200, 400}, found
    assert min(found.values()) > 50, found
    assert not [r for r in caplog.records if r.exc_info or r.levelname == "ERROR"]
    assert (await post(port_of(world), goods[JSON], JSON)).status == 200


HEAD = b"POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
EXPORT = as_json(("", ""), json_span("nobody's"))
SPANS = f"Content-Length: {len(EXPORT)}\r\n\r\n".encode() + EXPORT
NO_HTTP = {
    "noise": b"\x16\x03\x01\x00\xee\x01\0\0\xea\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a long line": b"POST /" + b"x" * 20000 + b" HTTP/1.1\r\n\r\n",
    "a long header": HEAD + b"x: " + b"y" * 20000 + b"\r\n\r\n",
    "many headers": HEAD + b"x: y\r\n" * 500 + b"\r\n",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "a length below zero": HEAD + b"Content-Length: -2\r\n\r\n{}",
    "a bad chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a header out of the alphabet": HEAD
    + b"x-lightning-rollout-id: \xff\r\nx-lightning-attempt-id: latest\r\n"
    + SPANS,
    "a sequence id of 5,000 digits": HEAD
    + b"x-lightning-rollout-id: ro-1\r\nx-lightning-attempt-id: latest\r\n"
    + b"x-lightning-span-sequence-id: "
    + b"9" * 5000
    + b"\r\n"
    + SPANS,
    "a body that breaks off": HEAD + b"Content-Length: 200\r\n\r\n{}",
    "a head that breaks off": HEAD,
}


@pytest.mark.parametrize("what", NO_HTTP)
async def test_what_is_no_http_is_refused_without_noise(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    writer.write(NO_HTTP[what])
    if what.endswith("breaks off"):
        writer.write_eof()
        assert b"Traceback" not in await asyncio.wait_for(reader.read(), 10)
    else:
        answer = await asyncio.wait_for(reader.readline(), 10)
        assert int(answer.split()[1]) == (200 if NO_HTTP[what].endswith(EXPORT) else 400)
    writer.close()
    noise = [r for r in caplog.records if r.exc_info or r.levelno >= 30]
    assert not [r for r in noise if "span(s) rejected" not in r.getMessage()]
    assert (await post(port_of(world), b"{}", JSON)).status == 200


async def test_client_that_asks_first_is_told_to_go_on(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"{}")
    assert (await reader.readline()).split()[1] == b"200"
    writer.close()


async def test_what_has_begun_is_finished_at_shutdown_and_nothing_else_begins(
    world: World,
) -> None:
    assert world.server is not None
    own, port = await ids(world), port_of(world)
    body = as_json(own, json_span("late"))
    idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
    idle.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert (await idle_reader.readuntil(b"\r\n\r\n{}")).startswith(b"HTTP/1.1 200")
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD + f"Expect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n".encode())
    await reader.readuntil(b"100 Continue\r\n\r\n")  # it has begun
    stop = asyncio.create_task(world.server.http._otlp.stop(10))  # type: ignore[union-attr]
    await asyncio.sleep(0)
    idle.write(HEAD + b"Content-Length: 2\r\n\r\n{}")
    assert (await idle_reader.readline()).split()[1] == b"503"
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    writer.write(body)
    assert (await reader.read()).startswith(b"HTTP/1.1 200")
    await asyncio.wait_for(stop, 5)
    assert await names(world, own[0]) == ["late"]
    idle.close()
    writer.close()


async def test_body_that_never_comes_holds_up_the_shutdown_no_longer_than_the_grace(
    world: World,
) -> None:
    assert world.server is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    writer.write(HEAD + b"Expect: 100-continue\r\nContent-Length: 9\r\n\r\n")
    await reader.readuntil(b"100 Continue\r\n\r\n")
    began = time.monotonic()
    await world.server.http._otlp.stop(0.2)  # type: ignore[union-attr]
    assert 0.2 <= time.monotonic() - began < 10
    assert await reader.read() == b""
    writer.close()
