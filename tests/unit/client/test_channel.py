"""The calls on a channel are made when they are first used, and a connection has the time that it needs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from lightningstore.client._transport.channel import Stub
from lightningstore.client._transport.grpc_async import AsyncGrpcTransport
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.client._transport.methods import SERVICE
from lightningstore.client.connection import endpoint
from lightningstore.v1.claim_pb2 import DequeueRolloutsResponse
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from lightningstore.v1.span_pb2 import AddSpansRequest

from .fakes import FakeServer
from .twins import Twin

NOBODY = endpoint("127.0.0.1:1")


def made(stub: object) -> set[str]:
    return set(vars(stub)) & set(SERVICE.methods_by_name)


def test_a_blocking_call_makes_its_own_stub_alone() -> None:
    transport = GrpcTransport(NOBODY)
    try:
        pending = transport.begin("AddSpans", AddSpansRequest(), 0.1)
        pending.cancel()
        assert made(transport._holder._stub) == {"AddSpans"}
    finally:
        transport.close()


@pytest.mark.asyncio
async def test_an_asyncio_call_makes_its_own_stub_alone() -> None:
    transport = AsyncGrpcTransport(NOBODY)
    try:
        transport._begin("AddSpans", AddSpansRequest(), timeout=0.1).cancel()
        assert made(transport._holder._stub) == {"AddSpans"}
    finally:
        await transport.close()


def test_each_call_is_the_one_of_the_generated_stub() -> None:
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        ours, generated = Stub(channel), LightningStoreServiceStub(channel)
        for name in SERVICE.methods_by_name:
            call, wanted = getattr(ours, name), getattr(generated, name)
            assert type(call) is type(wanted)
            assert call._method == wanted._method
            assert call is getattr(ours, name), "made once"


def test_an_unknown_method_is_an_attribute_error() -> None:
    with (
        grpc.insecure_channel("127.0.0.1:1") as channel,
        pytest.raises(AttributeError, match="no method 'Sing'"),
    ):
        Stub(channel).Sing  # noqa: B018


@pytest_asyncio.fixture
async def distant(server: FakeServer) -> AsyncIterator[str]:
    """The address of a server whose first bytes take half a second."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    relayed: list[asyncio.Task[None]] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        relayed.append(task)
        there, back = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            await asyncio.sleep(0.5)
            await asyncio.gather(pass_on(reader, back), pass_on(there, writer))
        finally:
            for end in (writer, back):
                end.close()
                with contextlib.suppress(ConnectionError):
                    await end.wait_closed()

    listening = await asyncio.start_server(relay, "127.0.0.1", 0)
    yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    listening.close()
    for task in relayed:
        task.cancel()
    await asyncio.gather(*relayed, return_exceptions=True)


@pytest.mark.asyncio
async def test_a_server_that_is_distant_is_reached_by_the_first_call(
    kind: str, server: FakeServer, distant: str
) -> None:
    """Also by one that is not repeated."""
    server.on["DequeueRollouts"] = lambda _: DequeueRolloutsResponse()
    twin = Twin(kind, distant, timeout=30.0)
    assert await twin.call("dequeue_rollouts", request_id="") == []
    await twin.close()
