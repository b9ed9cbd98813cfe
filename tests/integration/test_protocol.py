"""What every gRPC tool expects: reflection, health, and errors that say what is wrong."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from lightningstore.client import AsyncLightningStore, UnavailableError
from lightningstore.service.operations.table import table
from lightningstore.service.rpc import handlers
from lightningstore.v1 import service_pb2

from tests.contract.conftest import World
from tests.contract.helpers import enqueue, snapshot

pytestmark = pytest.mark.asyncio

SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
NAMESPACES = "lightningstore.v1.NamespaceService"
OTLP = "opentelemetry.proto.collector.trace.v1.TraceService"
METHODS = [f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods]
ALL_METHODS = [*METHODS, f"/{OTLP}/Export"]
REFLECTION = [
    f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
    for version in ("v1", "v1alpha")
]
STANDARD = ["/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", *REFLECTION]
GARBAGE = [b"\xff", b"\x0a\xff", b"garbage, and not of protobuf", b"\x00" * 9, b"\x0b\x0b"]


async def call(channel: grpc.aio.Channel, path: str, data: bytes) -> list[bytes]:
    """Call a method of whatever kind with these bytes; returns the answers."""
    if path.endswith("IngestSpans"):
        streaming = channel.stream_unary(path)
        return [await streaming(iter([data]))]
    if path in REFLECTION:
        return [answer async for answer in channel.stream_stream(path)(iter([data]))]
    method = SERVICE.methods_by_name.get(path.rsplit("/", 1)[1])
    if path.endswith("/Watch") or (method is not None and method.server_streaming):
        return [answer async for answer in channel.unary_stream(path)(data)]
    return [await channel.unary_unary(path)(data)]


def details(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert status.code == error.code().value[0]
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.domain == "lightningstore"
    return info


@pytest.mark.parametrize("path", [*ALL_METHODS, *STANDARD], ids=lambda path: path[1:])
async def test_garbage_is_a_malformed_message(
    world: World, channel: grpc.aio.Channel, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = await snapshot(world)
    for data in GARBAGE:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, path, data)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT, (data, caught.value)
        info = details(caught.value)
        assert info.reason == "ERROR_REASON_MALFORMED_MESSAGE"
        assert info.metadata["message"]
    assert await snapshot(world) == before
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("path", ALL_METHODS, ids=lambda path: path.rsplit("/", 1)[1])
async def test_defect_is_internal_and_says_nothing_but_its_id(
    world: World,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert world.service is not None
    store = world.service

    async def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret text")

    async def broken_stream(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("secret text")
        yield

    def broken_at_once(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("secret text")

    method = SERVICE.methods_by_name.get(path.rsplit("/", 1)[1])
    if path.endswith("Export"):
        monkeypatch.setattr(store.engine.committer, "admit", broken_at_once)
    elif path.endswith("IngestSpans"):
        monkeypatch.setattr(store.ingest, "add_batch", broken)
    else:
        streams = method is not None and method.server_streaming
        name = path.rsplit("/", 1)[1]
        operations = table(store)
        defect = operations[name]._replace(call=broken_stream if streams else broken)
        monkeypatch.setattr(handlers, "table", lambda _: {**operations, name: defect})
    # Handlers are bound when the server starts.
    from lightningstore.service.server.server import Server

    server = Server(world.service, world.config)
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(channel, path, b"")
    finally:
        await server._server.stop(0)
        await server.http.stop(0)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    info = details(caught.value)
    assert info.reason == "ERROR_REASON_INTERNAL"
    error_id = info.metadata["errorId"]
    assert error_id
    assert error_id in caught.value.details()
    shown = f"{caught.value.details()} {caught.value.trailing_metadata()}"
    assert "secret" not in shown
    assert "ZeroDivision" not in shown
    assert any(error_id in record.getMessage() and record.exc_info for record in caplog.records)


@pytest.mark.parametrize("path", [f"/{SERVICE.full_name}/Nope", "/grpc.health.v1.Health/List"])
async def test_unknown_method_is_unimplemented(
    channel: grpc.aio.Channel, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(path)(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    assert not [record for record in caplog.records if record.exc_info]


async def test_empty_bytes_are_a_message(channel: grpc.aio.Channel) -> None:
    assert await call(channel, f"/{SERVICE.full_name}/GetStatistics", b"")
    assert await call(channel, f"/{SERVICE.full_name}/EnqueueRollouts", b"") == [b""]


async def reflect(
    channel: grpc.aio.Channel, path: str, *asked: reflection_pb2.ServerReflectionRequest
) -> list[reflection_pb2.ServerReflectionResponse]:
    call = channel.stream_stream(
        path,
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )
    return [answer async for answer in call(iter(asked))]


@pytest.mark.parametrize("path", REFLECTION)
async def test_reflection_lists_the_services(channel: grpc.aio.Channel, path: str) -> None:
    (answer,) = await reflect(
        channel, path, reflection_pb2.ServerReflectionRequest(list_services="")
    )
    services = {service.name for service in answer.list_services_response.service}
    own = {path.split("/")[1] for path in REFLECTION}
    of_servers = "lightningstore.v1.ClusterService"
    assert {
        SERVICE.full_name,
        NAMESPACES,
        of_servers,
        OTLP,
        "grpc.health.v1.Health",
    } | own == services


#: Names, methods and values of enums among them, and the files that they are in.
SYMBOLS = {
    SERVICE.full_name: SERVICE.file.name,
    **{method.full_name: SERVICE.file.name for method in SERVICE.methods},
    f"{OTLP}.Export": "opentelemetry/proto/collector/trace/v1/trace_service.proto",
    "grpc.health.v1.Health.Watch": "grpc_health/v1/health.proto",
    "grpc.reflection.v1.ServerReflection": "grpc/reflection/v1/reflection.proto",
    "grpc.reflection.v1.ServerReflection.ServerReflectionInfo": "grpc/reflection/v1/reflection.proto",
    "lightningstore.v1.Rollout": "lightningstore/v1/rollout.proto",
    "lightningstore.v1.Rollout.rollout_id": "lightningstore/v1/rollout.proto",
    "lightningstore.v1.RolloutStatus": "lightningstore/v1/rollout.proto",
    "lightningstore.v1.ROLLOUT_STATUS_RUNNING": "lightningstore/v1/rollout.proto",
}


@pytest.mark.parametrize("path", REFLECTION)
async def test_reflection_knows_whatever_has_a_name(channel: grpc.aio.Channel, path: str) -> None:
    ask = reflection_pb2.ServerReflectionRequest
    asked = [ask(file_containing_symbol=symbol) for symbol in SYMBOLS]
    asked += [ask(file_by_filename=name) for name in SYMBOLS.values()]
    answers = await reflect(channel, path, *asked)
    names = [*SYMBOLS.values(), *SYMBOLS.values()]
    for request, answer, name in zip(asked, answers, names, strict=True):
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(data)
            for data in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert files, request
        assert files[0].name == name
        sent = {file.name for file in files}
        assert all(set(file.dependency) <= sent for file in files)


@pytest.mark.parametrize("path", REFLECTION)
@pytest.mark.parametrize("symbol", ["", "nope", f"{SERVICE.full_name}.Nope", "nope.Nope"])
async def test_reflection_of_an_unknown_name_is_not_found(
    channel: grpc.aio.Channel, path: str, symbol: str
) -> None:
    ask = reflection_pb2.ServerReflectionRequest(file_containing_symbol=symbol)
    (answer,) = await reflect(channel, path, ask)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("service", ["", SERVICE.full_name, OTLP])
async def test_health_is_serving(channel: grpc.aio.Channel, service: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_health_of_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(health_pb2.HealthCheckRequest(service="nope"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


async def test_large_health_request_is_not_read(channel: grpc.aio.Channel) -> None:
    for path in STANDARD[:2]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(channel, path, b"\x12\x80\x20" + b"x" * 4096)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("service", ["", SERVICE.full_name, OTLP])
async def test_health_is_not_serving_while_calls_drain(
    world: World, channel: grpc.aio.Channel, service: str
) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    stopping = asyncio.create_task(world.server.stop(5))
    answer = await asyncio.wait_for(watch.read(), 30)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    await asyncio.wait_for(stopping, 30)
    world.server = world.service = None


async def test_shutdown_ends_waits_and_answers_long_polls(world: World) -> None:
    (a,) = await enqueue(world, 1)
    await world.store.dequeue_rollouts(1)
    assert world.server is not None
    store = AsyncLightningStore(world.server.address, timeout=0.5)
    poll = asyncio.create_task(store.dequeue_rollouts(1, wait=60))
    wait, watch = store.wait_for_rollouts([a]), store.watch_rollouts()
    await wait.registered()
    await watch.registered()
    while (await world.store.get_statistics()).waiter_count < 3:
        await asyncio.sleep(0)
    await asyncio.wait_for(world.server.stop(5), 30)
    world.server = world.service = None
    assert await asyncio.wait_for(poll, 30) == []
    for stream in (wait, watch):
        with pytest.raises(UnavailableError):
            await asyncio.wait_for(stream.__anext__(), 30)
    await store.close()
