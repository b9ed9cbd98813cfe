"""Answers of the HTTP port: large ones, compressed ones, and fields that this version does not have."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest
from lightningstore.service.http import connect_wire
from lightningstore.v1.rollout_pb2 import ListRolloutsResponse

from tests.contract.conftest import World
from tests.contract.helpers import claim
from tests.integration.conftest import world
from tests.integration.http_calls import (
    HEAD,
    JSON,
    PROTO,
    STORE,
    STREAM_JSON,
    STREAM_PROTO,
    call,
    enveloped,
    error,
    port_of,
)
from tests.integration.test_otlp_http import Answer, send

__all__ = ["world"]

pytestmark = pytest.mark.asyncio

GZIP = {"Accept-Encoding": "gzip"}


async def raw(
    world: World, method: str, request: bytes = b"{}", kind: str = JSON, **headers: str
) -> Answer:
    """Make a call and return its answer as it was sent; without an encoding unless a header names one."""
    sent = {"Content-Type": kind, **headers}
    async with (
        aiohttp.ClientSession(
            auto_decompress=False, skip_auto_headers=["Accept-Encoding"]
        ) as client,
        client.post(
            f"http://127.0.0.1:{port_of(world)}/{STORE}/{method}", data=request, headers=sent
        ) as answer,
    ):
        return Answer(answer.status, answer.headers, await answer.read())


async def fill(world: World, count: int, size: int) -> None:
    await world.store.enqueue_rollouts(
        {"input": "x" * size, "rollout_id": f"r-{number}"} for number in range(count)
    )


def ids(answer: Mapping[str, list[dict[str, str]]]) -> list[str]:
    return sorted(r["rolloutId"] for r in answer["rollouts"])


async def test_large_answers_are_sent_in_pieces(world: World) -> None:
    await fill(world, 60, 20_000)
    expected = sorted(f"r-{number}" for number in range(60))
    answer = await raw(world, "ListRollouts")
    assert len(answer.body) > 4 * connect_wire.PIECE_BYTES
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert ids(json.loads(answer.body)) == expected
    answer = await raw(world, "ListRollouts", b"", PROTO)
    assert int(answer.headers["Content-Length"]) == len(answer.body) > connect_wire.PIECE_BYTES
    found = ListRolloutsResponse.FromString(answer.body)
    assert sorted(r.rollout_id for r in found.rollouts) == expected


@pytest.mark.parametrize(
    ("accepted", "is_compressed"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5", True),
        ("br,gzip", True),
        ("gzip;q=0", False),
        ("gzip; q=0.0, br", False),
        ("br", False),
        ("", False),
    ],
)
async def test_answers_are_compressed_for_clients_that_accept_it(
    world: World, accepted: str, is_compressed: bool
) -> None:
    await fill(world, 50, 200)
    plain = await raw(world, "ListRollouts")
    assert "Content-Encoding" not in plain.headers
    answer = await raw(world, "ListRollouts", **{"Accept-Encoding": accepted})
    assert (answer.headers.get("Content-Encoding") == "gzip") == is_compressed
    assert answer.headers["Content-Type"] == JSON
    if is_compressed:
        assert len(answer.body) < len(plain.body) / 5
    body = gzip.decompress(answer.body) if is_compressed else answer.body
    assert body == plain.body


async def test_small_answers_errors_and_protobuf_are_not_compressed(world: World) -> None:
    await fill(world, 50, 200)
    for answer in (
        await raw(world, "GetServerInfo", **GZIP),
        await raw(world, "GetRollout", b'{"rolloutId": "none"}', **GZIP),
        await raw(world, "ListRollouts", b"", PROTO, **GZIP),
    ):
        assert "Content-Encoding" not in answer.headers


def messages(data: bytes) -> list[tuple[int, bytes]]:
    """Return the flags and contents of the messages of a stream."""
    found = []
    while data:
        flags, size = HEAD.unpack_from(data)
        found.append((flags, data[HEAD.size : HEAD.size + size]))
        data = data[HEAD.size + size :]
    return found


async def test_messages_of_streams_are_compressed_for_clients_that_accept_it(world: World) -> None:
    await fill(world, 10, 300)
    await world.store.cancel_rollouts([f"r-{number}" for number in range(10)])
    request = enveloped(
        json.dumps({"rolloutIds": [f"r-{number}" for number in range(10)]}).encode()
    )
    plain = await raw(world, "WaitForRollouts", request, STREAM_JSON, **GZIP)
    assert "Connect-Content-Encoding" not in plain.headers  # Accept-Encoding is that of HTTP.
    accepted = {"Connect-Accept-Encoding": "br, gzip"}
    answer = await raw(world, "WaitForRollouts", request, STREAM_JSON, **accepted)
    assert answer.headers["Connect-Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in answer.headers
    found = messages(answer.body)
    assert found[-1] == (2, b"{}")
    assert 1 in {flags for flags, _ in found}  # Small messages are not compressed.
    opened = [gzip.decompress(data) if flags else data for flags, data in found[:-1]]
    assert opened == [data for _, data in messages(plain.body)[:-1]]
    answer = await raw(world, "WaitForRollouts", b"\0\0\0\0\0", STREAM_PROTO, **accepted)
    assert {flags for flags, _ in messages(answer.body)} == {2}


@pytest.mark.parametrize("kind", [JSON, PROTO, STREAM_JSON])
async def test_deadline_within_a_message_ends_the_connection(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world, 20, 20_000)
    await world.store.cancel_rollouts([f"r-{number}" for number in range(20)])
    write = connect_wire.Reply._write

    async def begin(reply: connect_wire.Reply, response: Any, parts: list[bytes]) -> None:
        await write(reply, response, [b"".join(parts)[:100]])
        reply._is_partial = True
        raise TimeoutError

    monkeypatch.setattr(connect_wire.Reply, "_write", begin)
    method, request = "ListRollouts", b"{}" if kind == JSON else b""
    if kind == STREAM_JSON:
        names = {"rolloutIds": [f"r-{number}" for number in range(20)]}
        method, request = "WaitForRollouts", enveloped(json.dumps(names).encode())
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    head = f"POST /{STORE}/{method} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
    writer.write(f"{head}Content-Length: {len(request)}\r\n\r\n".encode() + request)
    received = await asyncio.wait_for(reader.read(), 30)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"deadline_exceeded" not in received  # It would be taken for the rest of the message.
    assert len(received) < 1000
    writer.close()


async def test_generated_clients_of_a_later_version_are_understood(world: World) -> None:
    rollout, _ = await claim(world)
    request = {"rolloutId": rollout.rollout_id, "later": {"field": [1]}}
    assert error(await call(port_of(world), "GetRollout", request))[0] == 400
    version = {"Connect-Protocol-Version": "1"}
    answer = await call(port_of(world), "GetRollout", request, **version)
    assert json.loads(answer.body)["rollout"]["rolloutId"] == rollout.rollout_id
    body = enveloped(json.dumps({**request, "rolloutId": "none"}).encode())
    headers = {"Content-Type": STREAM_JSON, **version}
    answer = await send(port_of(world), "POST", f"/{STORE}/QuerySpans", body, headers)
    assert "later" not in answer.body.decode()
