"""A client goes to the server that owns its namespace, and comes back when that is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore, LightningStore
from lightningstore.client._transport import owner
from lightningstore.client._transport.blocking_owner import BlockingOwner
from lightningstore.client.connection import endpoint
from lightningstore.v1.namespace_pb2 import DeleteNamespaceRequest, GetNamespaceRequest

from tests.machines import Servers
from tests.postgres import PostgresServer

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def servers(postgres: PostgresServer) -> AsyncIterator[Servers]:
    """Two servers over one database."""
    servers = Servers(postgres)
    await servers.start()
    yield servers
    await servers.stop()
    await servers.close()


def owner_of(store: Any) -> Any:
    """Return a client's way to the owner."""
    transport = store._transport
    while not hasattr(transport, "_owner"):
        transport = transport._transport
    return transport._owner


def followed(store: AsyncLightningStore | LightningStore) -> bool:
    """Return whether a client has gone to the owner."""
    return owner_of(store).stub is not None


async def go_to_owner(store: AsyncLightningStore) -> None:
    """Make calls until the client has gone to the owner."""
    while not followed(store):
        await store.get_statistics()
        await asyncio.sleep(0.01)


async def test_client_of_another_server_goes_to_the_owner(servers: Servers) -> None:
    near = await servers.owner("default")
    async with AsyncLightningStore(servers.addresses[1 - near]) as store:
        await go_to_owner(store)
        (rollout,) = await store.enqueue_rollouts([{"input": 1}])
        await servers.servers[1 - near].directory.close()  # nothing passes through it any more
        assert (await store.get_rollout(rollout.rollout_id)).input == 1
        await store.cancel_rollouts([rollout.rollout_id])
        finished = [one async for one in store.wait_for_rollouts([rollout.rollout_id])]
        assert [one.rollout_id for one in finished] == [rollout.rollout_id]


async def test_client_of_the_owner_stays(servers: Servers) -> None:
    near = await servers.owner("default")
    async with AsyncLightningStore(servers.addresses[near]) as store:
        for _ in range(2 * owner.LOOK_EVERY):
            await store.get_statistics()
        assert not followed(store)


async def test_client_comes_back_when_the_owner_is_gone(servers: Servers) -> None:
    near = await servers.owner("default")
    async with AsyncLightningStore(servers.addresses[1 - near], timeout=30) as store:
        await go_to_owner(store)
        (rollout,) = await store.enqueue_rollouts([{"input": 1}])
        await servers.servers[near].stop(0.1)
        assert (await store.get_rollout(rollout.rollout_id)).input == 1
        assert not followed(store)
        assert (await store.get_server_info()).owner == servers.addresses[1 - near]


async def test_calls_at_the_owner_go_on_when_another_one_fails(servers: Servers) -> None:
    near = await servers.owner("default")
    async with AsyncLightningStore(servers.addresses[1 - near], timeout=30) as store:
        await go_to_owner(store)
        transport = owner_of(store)
        waiting = [
            asyncio.create_task(store.dequeue_rollouts(1, wait=20)),
            asyncio.create_task(anext(aiter(store.watch_rollouts(0)))),
        ]
        while not servers.servers[near].directory.spaces()[0].in_use:
            await asyncio.sleep(0.01)
        transport.drop(transport.stub)  # as after UNAVAILABLE
        (rollout,) = await store.enqueue_rollouts([{"input": 1}])
        (claimed,) = await waiting[0]
        assert claimed.rollout_id == rollout.rollout_id
        await store.cancel_rollouts([rollout.rollout_id])
        assert (await waiting[1]).rollout_id == rollout.rollout_id


async def test_calls_about_a_namespace_go_on_while_servers_look_for_the_owners(
    servers: Servers,
) -> None:
    """Their metadata names no namespace, and another server owns the default one.

    No server owns a namespace that is being deleted.
    """
    near = await servers.owner("default")
    await servers.callers[1 - near].create("a")
    assert await servers.owner("a") == 1 - near
    owner: Any = servers.servers[1 - near]._cluster
    held = [
        (owner, "discover", "GetNamespace", GetNamespaceRequest(name="a")),
        (owner.catalog, "delete", "DeleteNamespace", DeleteNamespaceRequest(name="a")),
    ]
    for holder, step, method, request in held:
        begun, go_on = asyncio.Event(), asyncio.Event()
        original = getattr(holder, step)

        async def wait_and_do(
            name: str, *, begun: Any = begun, go_on: Any = go_on, original: Any = original
        ) -> None:
            begun.set()
            await go_on.wait()
            await original(name)

        setattr(holder, step, wait_and_do)
        call = asyncio.create_task(servers.callers[near].call(method, request))
        await begun.wait()
        await servers.servers[near]._cluster.refresh()  # type: ignore[union-attr]
        go_on.set()
        await call


async def test_calls_end_when_another_server_owns_the_namespace_or_their_server_is_gone(
    servers: Servers,
) -> None:
    near = await servers.owner("default")
    await servers.callers[1 - near].create("a")
    assert await servers.owner("a") == 1 - near
    cluster: Any = servers.servers[near]._cluster
    other: Any = servers.servers[1 - near]._cluster
    await cluster.refresh()
    address = other._database.membership.address
    names = ("a", "nowhere", "default")
    assert [cluster._may_answer(name, address) for name in names] == [True, True, False]
    assert not cluster._may_answer("a", "127.0.0.1:1")


@pytest.mark.parametrize(
    "address",
    ["", "x", "unix:/run/some.sock", "unix:1", "dns://a/b:1", "a:1,b:2", "a b:1", "[::1", "a:1\n"],
)
async def test_trailers_lead_to_a_host_and_a_port_alone(address: str) -> None:
    way = owner.Owner(endpoint("127.0.0.1:1"))
    way.learn(((owner.OWNER_KEY, address),))
    assert way._connecting is None
    await way.close()
    blocking = BlockingOwner(endpoint("127.0.0.1:1"))
    blocking.learn(((owner.OWNER_KEY, address),))
    assert not blocking._is_connecting


@pytest.mark.parametrize("address", ["127.0.0.1:1", "[::1]:1", "store-2.ns_a.svc:1"])
async def test_trailers_lead_to_every_host_and_port(address: str) -> None:
    way = owner.Owner(endpoint("127.0.0.1:1"))
    way.learn(((owner.OWNER_KEY, address),))
    assert way._connecting is not None
    await way.close()


async def go_blocking(store: LightningStore) -> None:
    """Make calls until a blocking client has gone to the owner."""
    while not followed(store):
        await asyncio.to_thread(store.get_statistics)
        await asyncio.sleep(0.01)


async def test_blocking_client_goes_to_the_owner(servers: Servers) -> None:
    near = await servers.owner("default")
    with LightningStore(servers.addresses[1 - near]) as store:
        await go_blocking(store)
        await servers.servers[1 - near].directory.close()  # nothing passes through it any more
        (rollout,) = await asyncio.to_thread(store.enqueue_rollouts, [{"input": 1}])
        answer = await asyncio.to_thread(store.get_rollout, rollout.rollout_id)
        assert answer.input == 1


async def test_blocking_client_comes_back_when_the_owner_is_gone(servers: Servers) -> None:
    near = await servers.owner("default")
    with LightningStore(servers.addresses[1 - near], timeout=30) as store:
        await go_blocking(store)
        (rollout,) = await asyncio.to_thread(store.enqueue_rollouts, [{"input": 1}])
        await servers.servers[near].stop(0.1)
        answer = await asyncio.to_thread(store.get_rollout, rollout.rollout_id)
        assert answer.input == 1
        assert not followed(store)


async def test_blocking_calls_at_the_owner_go_on_when_another_one_fails(servers: Servers) -> None:
    near = await servers.owner("default")
    with LightningStore(servers.addresses[1 - near], timeout=30) as store:
        await go_blocking(store)
        way = owner_of(store)
        waiting = [
            asyncio.create_task(asyncio.to_thread(store.dequeue_rollouts, 1, wait=20)),
            asyncio.create_task(asyncio.to_thread(next, iter(store.watch_rollouts(0)))),
        ]
        while not servers.servers[near].directory.spaces()[0].in_use:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(way.drop, way.stub)  # as after UNAVAILABLE
        (rollout,) = await asyncio.to_thread(store.enqueue_rollouts, [{"input": 1}])
        (claimed,) = await waiting[0]
        assert claimed.rollout_id == rollout.rollout_id
        await asyncio.to_thread(store.cancel_rollouts, [rollout.rollout_id])
        assert (await waiting[1]).rollout_id == rollout.rollout_id


async def test_owner_that_cannot_be_reached_is_left_alone_for_a_minute() -> None:
    way = BlockingOwner(endpoint("127.0.0.1:1"))
    way.learn([(owner.OWNER_KEY, "127.0.0.1:1"), ("other", "x")])
    while way._is_connecting:
        await asyncio.sleep(0.05)
    assert way.stub is None
    way.learn([(owner.OWNER_KEY, "127.0.0.1:1")])
    assert not way._is_connecting
    way.close()
