"""Calls that one server forwards to another: what passes, and how they end when the owner changes."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from unittest.mock import AsyncMock, Mock

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status
from lightningstore.service.rpc import handlers
from lightningstore.service.rpc.forwarding import FORWARDED_KEY, OWNER_KEY, Forwarding, Peer
from lightningstore.service.rules.errors import NotOwner
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import channel_options
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.completion_pb2 import WatchRolloutsRequest
from lightningstore.v1.rollout_pb2 import GetRolloutRequest
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest

from tests.contract.conftest import World
from tests.forwarder import Forwarder
from tests.integration import unread

pytestmark = pytest.mark.asyncio

GET_SERVER_INFO = f"/{handlers.SERVICE.full_name}/GetServerInfo"


@pytest_asyncio.fixture
async def forwarder(world: World) -> AsyncIterator[Forwarder]:
    """A server that forwards to the world's."""
    assert world.server is not None
    forwarder = Forwarder(world.server.address)
    await forwarder.start()
    yield forwarder
    await forwarder.stop()


@pytest_asyncio.fixture
async def stub(forwarder: Forwarder) -> AsyncIterator[Any]:
    """A stub of the contract, as any client has it."""
    async with grpc.aio.insecure_channel(forwarder.address) as channel:
        yield LightningStoreServiceStub(channel)


def error_of(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Return reason and metadata of an error's ErrorInfo."""
    status = status_pb2.Status()
    for key, value in error.trailing_metadata():
        if key == rpc_status.GRPC_DETAILS_METADATA_KEY:
            status = status_pb2.Status.FromString(value)
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    return info.reason, dict(info.metadata)


async def test_answers_name_the_owner(world: World, stub: Any) -> None:
    assert world.server is not None
    call = stub.GetServerInfo(GetServerInfoRequest())
    assert (await call).store_id
    assert (OWNER_KEY, world.server.address) in tuple(await call.trailing_metadata())


async def test_errors_pass_with_their_details(world: World, stub: Any) -> None:
    assert world.server is not None
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetRollout(GetRolloutRequest(rollout_id="ro-none"))
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND
    assert error_of(raised.value) == ("ERROR_REASON_ROLLOUT_NOT_FOUND", {"rolloutId": "ro-none"})
    assert (OWNER_KEY, world.server.address) in tuple(raised.value.trailing_metadata())


class Recorder(grpc.GenericRpcHandler):
    """A server that answers nothing but keeps the metadata of its calls. It is the handler of its own calls."""

    def __init__(self) -> None:
        self.seen: asyncio.Queue[tuple[tuple[str, Any], ...]] = asyncio.Queue()
        self._server = grpc.aio.server()
        self._server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of every method."""

        async def answer(_: bytes, context: Any) -> bytes:
            self.seen.put_nowait(tuple(context.invocation_metadata()))
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)

    async def __aenter__(self) -> Recorder:  # noqa: PYI034
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(0)


async def test_metadata_passes_and_the_owner_sees_who_forwarded() -> None:
    sent = (("authorization", "Bearer x"), ("x-lightning-namespace", "a"), ("some-bin", b"\0"))
    async with Recorder() as owner:
        forwarder = Forwarder(owner.address)
        await forwarder.start()
        async with grpc.aio.insecure_channel(forwarder.address) as channel:
            await channel.unary_unary(GET_SERVER_INFO)(b"", metadata=sent)
        await forwarder.stop()
        metadata = owner.seen.get_nowait()
    assert set(sent) <= set(metadata)
    assert (FORWARDED_KEY, forwarder.address) in metadata
    assert sum(key == "user-agent" for key, _ in metadata) == 1


async def test_metadata_that_grpc_receives_and_does_not_send_is_left_out() -> None:
    """A proxy may add a header with the name of a user, in UTF-8."""
    async with Recorder() as owner:
        forwarder = Forwarder(owner.address)
        await forwarder.start()
        peer = await unread.connect(forwarder.address)
        odd = {"x-user": "Zoë".encode(), "x-latin": b"Zo\xeb", "x-delete": b"a\x7fb", "x-a": b"1"}
        await peer.begin(GET_SERVER_INFO, b"", answered=False, metadata=odd)
        metadata = dict(await asyncio.wait_for(owner.seen.get(), 10))
        await peer.close()
        await forwarder.stop()
    assert {key: metadata.get(key) for key in odd} == dict.fromkeys(odd) | {"x-a": "1"}


@pytest.mark.parametrize("method", ["DequeueRollouts", "WatchRollouts"])
async def test_calls_end_when_the_owner_changes(
    forwarder: Forwarder, stub: Any, method: str
) -> None:
    """A stopped owner answers nothing: what it was asked must not wait for its deadline."""
    if method == "WatchRollouts":
        stream = stub.WatchRollouts(WatchRolloutsRequest(), timeout=50)
        await stream.read()
        waiting = asyncio.ensure_future(stream.read())
    else:
        request = DequeueRolloutsRequest(worker_id="w", limit=1)
        request.wait.FromSeconds(40)
        waiting = asyncio.ensure_future(_result(stub.DequeueRollouts(request, timeout=50)))
        while not forwarder.peer.calls:
            await asyncio.sleep(0.005)
    forwarder.peer.end_calls("another")
    assert len(forwarder.peer.calls) == 1
    forwarder.peer.end_calls("default")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await asyncio.wait_for(waiting, 10)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    reason, metadata = error_of(raised.value)
    assert (reason, metadata["namespace"]) == ("ERROR_REASON_NOT_OWNER", "default")


async def _result(call: Any) -> Any:
    return await call


@asynccontextmanager
async def forwarding_to_silence() -> AsyncIterator[tuple[Forwarding, Peer, str]]:
    """Forward the calls of namespace `a` to a server that answers nothing; yields its address, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        placement = Mock(elsewhere=Mock(return_value=address))
        forwarding = Forwarding(placement, "127.0.0.1:1", grpc.aio.insecure_channel)
        peer = forwarding.peer("a")
        assert peer is not None
        yield forwarding, peer, address
        await forwarding.close()


async def test_calls_end_when_they_should_go_to_another_server() -> None:
    """Also those to a server that only should have owned the namespace, and was stopped before it did."""
    async with forwarding_to_silence() as (forwarding, peer, address):
        metadata = (("x-lightning-namespace", "a"),)
        call = asyncio.create_task(peer.call("/service/Method", b"", metadata, 60))
        while not peer.calls:
            await asyncio.sleep(0.005)
        forwarding.end_misplaced(lambda *asked: asked == ("a", address))
        assert len(peer.calls) == 1
        forwarding.end_misplaced(lambda *asked: asked != ("a", address))
        with pytest.raises(NotOwner):
            await asyncio.wait_for(call, 5)


async def test_call_about_a_namespace_ends_when_that_namespace_moves() -> None:
    """Such as DeleteNamespace, whose metadata names no namespace."""
    async with forwarding_to_silence() as (forwarding, peer, address):
        context = Mock(
            **{
                "invocation_metadata.return_value": (),
                "time_remaining.return_value": 60,
                "cancelled.return_value": False,
                "done.return_value": False,
            }
        )
        context.abort = AsyncMock(side_effect=grpc.aio.AbortError)
        call = asyncio.create_task(peer.forward("/service/Method", b"", context, "a"))
        while not peer.calls:
            await asyncio.sleep(0.005)
        forwarding.end_misplaced(lambda *asked: asked == ("a", address))
        assert len(peer.calls) == 1
        forwarding.end_misplaced(lambda *asked: asked == ("default", address))
        with pytest.raises(grpc.aio.AbortError):
            await asyncio.wait_for(call, 30)
        assert context.abort.call_args.args[0] == grpc.StatusCode.UNAVAILABLE
        assert "namespace 'a'" in context.abort.call_args.args[1]


async def test_an_owner_that_is_gone_is_an_error_that_says_so(world: World, stub: Any) -> None:
    assert world.server is not None
    address = world.server.address
    await world.server.stop(0)
    world.server = None
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetServerInfo(GetServerInfoRequest(), timeout=20)
    assert raised.value.code() == grpc.StatusCode.UNAVAILABLE
    assert error_of(raised.value)[1]["owner"] == address
    world.service = None


async def test_an_owner_that_was_away_is_reached_within_a_second_or_two() -> None:
    attempts = 0
    enough = asyncio.Event()

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 7:
            enough.set()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as away:
        host, port = away.sockets[0].getsockname()
        options = channel_options(Config())
        async with grpc.aio.insecure_channel(f"{host}:{port}", options=options) as channel:
            waiting = asyncio.ensure_future(channel.channel_ready())
            # 0.1 s between the first two, and never more than a second. With gRPC's defaults these take 20 seconds.
            await asyncio.wait_for(enough.wait(), 18)
            waiting.cancel()


async def test_a_call_that_the_client_cancels_ends_at_the_owner(
    world: World, forwarder: Forwarder, stub: Any
) -> None:
    assert world.service is not None
    stream = stub.WatchRollouts(WatchRolloutsRequest())
    await stream.read()
    waiters = world.service.engine.waiters
    while not waiters.count:
        await asyncio.sleep(0.005)
    stream.cancel()
    while waiters.count or forwarder.peer.calls:
        await asyncio.sleep(0.005)


async def test_the_deadline_of_the_client_holds_at_the_owner(world: World, stub: Any) -> None:
    request = DequeueRolloutsRequest(worker_id="w", limit=1)
    request.wait.FromSeconds(300)
    polling = asyncio.ensure_future(_result(stub.DequeueRollouts(request, timeout=20)))
    while not polling.done():  # a long poll ends before its deadline, by the owner's clock
        await world.advance(0.5)
        await asyncio.sleep(0.01)
    assert not (await polling).rollouts
