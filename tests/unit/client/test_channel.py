"""The calls on a channel are made when they are first used."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from lightningstore.client._transport.channel import Stub
from lightningstore.client._transport.grpc_async import AsyncGrpcTransport
from lightningstore.client._transport.grpc_sync import GrpcTransport
from lightningstore.client._transport.methods import SERVICE
from lightningstore.client.connection import endpoint
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from lightningstore.v1.span_pb2 import AddSpansRequest

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
