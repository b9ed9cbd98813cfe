"""Calls over HTTP by the Connect protocol, as curl makes them."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from google.protobuf import json_format
from google.rpc import error_details_pb2

from tests.contract.conftest import World
from tests.integration.test_otlp_http import Answer, send

STORE = "lightningstore.v1.LightningStoreService"
JSON, PROTO = "application/json", "application/proto"
STREAM_JSON, STREAM_PROTO = "application/connect+json", "application/connect+proto"
HEAD = struct.Struct(">BI")


def port_of(world: World) -> int:
    assert world.server is not None
    return world.server.http.port


def base64_of(value: Any) -> str:
    """Return a value as a field of bytes that holds JSON."""
    return base64.b64encode(json.dumps(value).encode()).decode()


async def call(port: int, method: str, request: Any = None, **headers: str) -> Answer:
    """Make a call in JSON; a method without a service is of the store. Bytes are sent as they are."""
    path = method if method.startswith("/") else f"/{STORE}/{method}"
    body = request if isinstance(request, bytes) else json.dumps(request or {}).encode()
    return await send(port, "POST", path, body, {"Content-Type": JSON, **headers})


def error(answer: Answer) -> tuple[int, str, str]:
    """Return status, code and reason of an error; checks its form."""
    assert answer.headers["Content-Type"].startswith(JSON)
    return answer.status, *reason_of(json.loads(answer.body))


def reason_of(found: dict[str, Any]) -> tuple[str, str]:
    """Return code and reason of an error in Connect's JSON, "" without details; checks its form."""
    assert set(found) <= {"code", "message", "details"}
    assert found["message"]
    for detail in found.get("details", []):
        if detail["type"] == "google.rpc.ErrorInfo":
            info = error_details_pb2.ErrorInfo.FromString(base64.b64decode(detail["value"] + "=="))
            assert info == json_format.ParseDict(detail["debug"], type(info)())
            return found["code"], info.reason.removeprefix("ERROR_REASON_")
    return found["code"], ""


def enveloped(data: bytes, flags: int = 0) -> bytes:
    return HEAD.pack(flags, len(data)) + data


class Stream:
    """A call with a stream of answers, as it arrives."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response

    async def next(self) -> tuple[int, bytes]:
        """Return flags and content of the next message."""
        flags, size = HEAD.unpack(await self.response.content.readexactly(HEAD.size))
        return flags, await self.response.content.readexactly(size)

    async def rest(self) -> tuple[list[bytes], dict[str, Any]]:
        """Return the remaining answers, and what ends the stream."""
        answers = []
        while True:
            flags, data = await self.next()
            if flags & 2:
                assert await self.response.content.read() == b""
                return answers, json.loads(data)
            assert flags == 0
            answers.append(data)


@asynccontextmanager
async def stream(
    port: int, method: str, request: bytes = b"{}", kind: str = STREAM_JSON, **headers: str
) -> AsyncIterator[Stream]:
    """Make a call with a stream of answers; the client leaves at the end of the context."""
    url, sent = f"http://127.0.0.1:{port}/{STORE}/{method}", {"Content-Type": kind, **headers}
    async with (
        aiohttp.ClientSession() as session,
        session.post(url, data=enveloped(request), headers=sent) as response,
    ):
        assert response.status == 200
        assert response.headers["Content-Type"] == kind
        yield Stream(response)
        response.close()
