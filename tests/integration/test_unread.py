"""Unread answers: they delay neither other callers nor the end of the server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from lightningstore.service.rpc import health
from lightningstore.service.server.server import Server
from lightningstore.v1.completion_pb2 import WatchRolloutsRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest
from lightningstore.v1.statistics_pb2 import GetServerInfoResponse

from benchmarks.wire import PREFACE, SETTINGS, frame
from tests.contract.conftest import World
from tests.integration.process import serve
from tests.integration.unread import Peer, connect

pytestmark = pytest.mark.asyncio

SERVICE = "/lightningstore.v1.LightningStoreService/"
WATCH = "/grpc.health.v1.Health/Watch"
EVERYTHING = health_pb2.HealthCheckRequest(service="").SerializeToString()
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest_asyncio.fixture
async def peer(world: World) -> AsyncIterator[Peer]:
    """A peer that takes no byte of an answer."""
    assert world.server is not None
    peer = await connect(world.server.address)
    yield peer
    await peer.close()


async def test_unread_health_watch_holds_up_no_other(
    world: World, peer: Peer, channel: grpc.aio.Channel
) -> None:
    assert world.service is not None
    await peer.begin(WATCH, EVERYTHING)
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == SERVING
    for usable, status in ((False, NOT_SERVING), (True, SERVING)):
        world.service.engine._report_usability(usable=usable)
        assert (await asyncio.wait_for(watch.read(), 30)).status == status
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == status
    watch.cancel()


async def test_health_watches_are_bounded_apart_from_other_streams(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert world.service is not None
    monkeypatch.setattr(health, "MAX_WATCHES", 2)
    server = Server(world.service, world.config)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as own:
            stub = health_pb2_grpc.HealthStub(own)
            watches = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(2)]
            assert [(await watch.read()).status for watch in watches] == [SERVING, SERVING]
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Watch(health_pb2.HealthCheckRequest()).read()
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == SERVING
            rollouts = own.unary_stream(SERVICE + "WatchRollouts")(b"")
            await rollouts.initial_metadata()
            rollouts.cancel()
    finally:
        await server._server.stop(0)
        await server.http.stop(0)


async def test_health_watch_ends_with_not_serving_and_unavailable(
    world: World, channel: grpc.aio.Channel
) -> None:
    assert world.server is not None
    watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await watch.read()).status == SERVING
    stopping = asyncio.create_task(world.server.stop(600))
    assert (await watch.read()).status == NOT_SERVING
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watch.read()
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(stopping, 30)  # and not the 600 s of the grace: no call is left
    world.server = world.service = None


async def test_unread_answers_do_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    running = await serve("--port", "0", "--grace", "0.5", folder=tmp_path)
    many = EnqueueRolloutsRequest()
    for _ in range(100):
        many.rollouts.add(input_json=b'"%s"' % (b"x" * 10_000))
    host = f"lightningstore://{running.address}"
    async with grpc.aio.insecure_channel(running.address) as channel:
        await channel.unary_unary(SERVICE + "EnqueueRollouts")(many.SerializeToString())
    reflection = reflection_pb2.ServerReflectionRequest(host=host, list_services="")
    peers = [await connect(running.address) for _ in range(4)]
    for peer in peers:
        await peer.begin(WATCH, EVERYTHING)
        await peer.begin("/grpc.health.v1.Health/Check", EVERYTHING)
        await peer.begin(SERVICE + "ListRollouts", b"")
        await peer.begin(SERVICE + "WatchRollouts", WatchRolloutsRequest().SerializeToString())
        await peer.begin(
            "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
            reflection.SerializeToString(),
            half_close=False,
        )
    assert await running.stop() == 0  # without a bound it would not end
    for peer in peers:
        await peer.close()


async def test_half_requests_do_not_keep_the_server_from_ending(tmp_path: Path) -> None:
    running = await serve(
        *("--port", "0", "--otlp-http-port", "0", "--metrics-port", "0", "--grace", "0.5"),
        folder=tmp_path,
    )
    async with grpc.aio.insecure_channel(running.address) as channel:
        answer = await channel.unary_unary(SERVICE + "GetServerInfo")(b"")
    http_port = GetServerInfoResponse.FromString(answer).otlp_http_port
    head = b"POST /v1/traces HTTP/1.1\r\nHost: store\r\nContent-Type: application/x-protobuf\r\n"
    begun = [
        (running.address.rsplit(":", 1)[1], b""),
        (running.address.rsplit(":", 1)[1], PREFACE[:10]),
        (running.address.rsplit(":", 1)[1], PREFACE + frame(SETTINGS, 0, 0)[:5]),
        (http_port, b""),
        (http_port, head),
        (http_port, head + b"Content-Length: 1000\r\n\r\n" + b"x" * 10),
        (http_port, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhe"),
    ]
    writers = []
    for port, data in begun:
        _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        writer.write(data)
        await writer.drain()
        writers.append(writer)
    peer = await connect(running.address)
    await peer.begin(SERVICE + "IngestSpans", b"", half_close=False, answered=False)
    assert await running.stop() == 0  # without a bound it would not end
    await peer.close()
    for writer in writers:
        writer.close()
