"""The HTTP port and clients that do not keep to the protocol: no defect, no noise, and no other caller waits."""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import struct
import time
from pathlib import Path
from typing import Any

import aiohttp
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.http import json_messages
from lightningstore.service.http.json_messages import MAX_BYTES, MAX_VALUES
from lightningstore.service.rpc.handlers import SERVICE
from lightningstore.v1.span_pb2 import AddSpansRequest

from tests.contract.conftest import World
from tests.integration.conftest import world
from tests.integration.http_calls import (
    JSON,
    PROTO,
    STORE,
    STREAM_JSON,
    STREAM_PROTO,
    base64_of,
    call,
    enveloped,
    port_of,
)
from tests.integration.process import serve
from tests.integration.test_http_port_start import link, port_in
from tests.integration.test_otlp_http_hostile import mutations

__all__ = ["world"]

pytestmark = pytest.mark.asyncio

SPAN = {"traceId": "AAAA", "attributes": [{"key": "k", "value": {"intValue": "5"}}]}
REQUESTS = {
    "EnqueueRollouts": {"rollouts": [{"inputJson": base64_of([1]), "labels": {"a": "b"}}]},
    "AddSpans": {"batch": {"rolloutId": "x", "attemptId": "y", "spans": [SPAN]}},
    "ListRollouts": {"pageSize": 5, "statuses": ["ROLLOUT_STATUS_QUEUING"]},
    "UpdateRollout": {"rollout": {"rolloutId": "x"}, "updateMask": "metadataJson"},
    "Heartbeat": {"workerId": "w", "statsJson": "e30="},
}

TYPES = {m.name: GetMessageClass(m.input_type) for m in SERVICE.methods}


def with_odd_value(seed: int, value: Any) -> Any:
    """Return a value of which one part, at any depth, is something else."""
    chance = random.Random(seed)
    if isinstance(value, dict | list) and value and chance.random() < 0.8:
        changed = value.copy()
        place = chance.choice(range(len(value)) if isinstance(value, list) else sorted(value))
        changed[place] = with_odd_value(seed + 1, value[place])
        return changed
    odd = (None, True, -1, 2**63, 2**200, 1e300, "", "NaN", "\ud800", "1" * 5000, [], [[]], {}, "x")
    return chance.choice(odd)


async def test_no_body_whatever_makes_a_defect(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    found: dict[int, int] = {}
    async with aiohttp.ClientSession() as session:
        for seed in range(800):
            method = sorted(REQUESTS)[seed % len(REQUESTS)]
            body, kind = json.dumps(with_odd_value(seed, REQUESTS[method])).encode(), JSON
            if seed % 2:
                body = mutations(seed, body)
            if seed % 4 == 0:
                good = json_messages.serialised(
                    json.dumps(REQUESTS[method]).encode(), TYPES[method]
                )
                body, kind = mutations(seed, good), PROTO
            headers = {"Content-Type": kind}
            if seed % 5 == 0:
                body = mutations(-seed, gzip.compress(body))
                headers["Content-Encoding"] = "gzip"
            url = f"http://127.0.0.1:{port_of(world)}/{STORE}/{method}"
            async with session.post(url, data=body, headers=headers) as answer:
                described = json.loads(await answer.read()) if answer.status != 200 else {}
                assert described.get("code") != "internal", (seed, described)
                found[answer.status] = found.get(answer.status, 0) + 1
    assert set(found) <= {200, 400, 404, 409}, found
    assert min(found[200], found[404]) > 5, found
    assert not [r for r in caplog.records if r.exc_info or r.levelname == "ERROR"]


async def test_no_envelope_whatever_makes_a_defect(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with aiohttp.ClientSession() as session:
        for seed in range(300):
            body = mutations(seed, enveloped(b'{"rolloutId": "x"}', seed % 2))
            headers = {
                "Content-Type": (STREAM_JSON, STREAM_PROTO)[seed % 3 == 0],
                "Connect-Content-Encoding": "gzip",
                "Connect-Timeout-Ms": "1000",
            }
            url = f"http://127.0.0.1:{port_of(world)}/{STORE}/QuerySpans"
            async with session.post(url, data=body, headers=headers) as answer:
                data = await answer.read()
            flags, size = struct.unpack_from(">BI", data)
            assert (answer.status, flags, size) == (200, 2, len(data) - 5)
            assert json.loads(data[5:])["error"]["code"] in ("invalid_argument", "not_found")
    assert not [r for r in caplog.records if r.exc_info or r.levelname == "ERROR"]


#: Bodies in JSON that are as costly as the limits allow.
COSTLY = {
    "one long string": b'{"rollouts":[{"inputJson":"' + b"QUFB" * (MAX_BYTES // 4 - 9) + b'"}]}',
    "many objects": b'{"rollouts":[' + b"{}," * (MAX_VALUES - 9) + b"{}]}",
    "many numbers": b'{"rolloutIds":[' + b"1," * (MAX_VALUES - 9) + b"1]}",
    "marks in a string": b'{"rollouts":[{"inputJson":"' + b',[\\"' * (MAX_BYTES // 4 - 9) + b'"}]}',
    "depth": b"[" * (MAX_BYTES - 9),
    "spaces": b"{" + b" " * (MAX_BYTES - 9) + b"}",
}


async def test_no_body_holds_up_other_callers(tmp_path: Path) -> None:
    process = await serve("--port", "0", "--backend", "memory", folder=tmp_path, http=True)
    port, seconds = port_in(await link(process)), [0.0]
    async with grpc.aio.insecure_channel(process.address) as channel:
        get = channel.unary_unary(f"/{STORE}/GetServerInfo")
        await get(b"")  # what connecting takes is not measured

        async def measure() -> None:
            while True:
                began = time.perf_counter()
                await get(b"")
                seconds.append(time.perf_counter() - began)

        async def longest(what: str) -> float:
            """Return the longest call beside one with this body."""
            seconds[:] = [0.0]
            answer = await call(port, "EnqueueRollouts", COSTLY[what])
            assert answer.status in ((200,) if what == "spaces" else (400, 429)), what
            return max(seconds)

        measuring = asyncio.create_task(measure())
        for what in COSTLY:
            # 50 ms and what the test's own client takes. A body that holds others up does so each time; on a busy
            # machine, something else may do so once.
            assert min([await longest(what) for _ in range(3)]) < 0.25, what
        measuring.cancel()
    assert await process.stop() == 0


async def test_compressed_bomb_is_refused_before_it_grows(world: World) -> None:
    bomb = gzip.compress(b" " * (300 << 20))
    for kind in (JSON, PROTO):
        headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
        answer = await call(port_of(world), "GetRollout", bomb, **headers)
        assert answer.status == 429
        assert json.loads(answer.body)["code"] == "resource_exhausted"


HEAD = f"POST /{STORE}/GetRollout HTTP/1.1\r\nHost: localhost\r\n".encode()
KIND = b"Content-Type: application/json\r\n"
MALFORMED = {
    "noise": b"\x16\x03\x01\x00\xee\x01\0\0\xea\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a long line": b"POST /" + b"x" * 20000 + b" HTTP/1.1\r\n\r\n",
    "many headers": HEAD + b"x: y\r\n" * 500 + b"\r\n",
    "two lengths": HEAD + KIND + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "a length and chunks": HEAD
    + KIND
    + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
    "a bad chunk": HEAD + KIND + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
    "a namespace out of the alphabet": HEAD
    + KIND
    + b"x-lightning-namespace: \xff\r\nContent-Length: 2\r\n\r\n{}",
    "a body that breaks off": HEAD + KIND + b"Content-Length: 200\r\n\r\n{}",
    "a head that breaks off": HEAD,
}


@pytest.mark.parametrize("what", MALFORMED)
async def test_what_is_not_http_is_refused_without_noise(
    world: World, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    writer.write(MALFORMED[what])
    if what.endswith("breaks off"):
        writer.write_eof()
        assert b"Traceback" not in await asyncio.wait_for(reader.read(), 10)
    else:
        answer = await asyncio.wait_for(reader.readline(), 10)
        assert int(answer.split()[1]) == 400
    writer.close()
    assert not [r for r in caplog.records if r.exc_info or r.levelno >= 30]
    assert (await call(port_of(world), "GetStatistics")).status == 200


async def test_body_that_is_too_long_is_refused_unread(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(world))
    writer.write(HEAD + KIND + b"Content-Length: 999999999\r\n\r\n{")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b" 429 " in head
    assert b"Connection: close" in head
    writer.close()


async def test_headers_of_others_are_not_metadata(world: World) -> None:
    odd = {"Cookie": "a=b", "X-Forwarded-For": "1.2.3.4", "x-lightning-note-bin": "not base64!"}
    assert (await call(port_of(world), "GetStatistics", {}, **odd)).status == 200


async def test_text_that_is_no_utf_8_is_repaired_in_protobuf_as_over_grpc(world: World) -> None:
    request = AddSpansRequest()
    request.batch.rollout_id, request.batch.attempt_id = "x", "y"
    request.batch.spans.add(name="abc")
    sent = request.SerializeToString().replace(b"abc", b"a\xffc")
    answer = await call(port_of(world), "AddSpans", sent, **{"Content-Type": PROTO})
    assert b"MALFORMED" not in answer.body
    answer = await call(port_of(world), "Heartbeat", b"\x1a\x01\xff", **{"Content-Type": PROTO})
    assert b"MALFORMED" in answer.body
