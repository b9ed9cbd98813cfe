from __future__ import annotations

import asyncio

from lightningstore.client import AsyncLightningStore
from lightningstore.v1 import rollout_pb2

from .fakes import FakeServer


def test_an_asyncio_client_serves_one_loop_after_another(server: FakeServer) -> None:
    server.on["GetRollout"] = lambda _: rollout_pb2.GetRolloutResponse()
    store = AsyncLightningStore(server.address)

    async def once() -> None:
        await store.get_rollout("x")

    async def last() -> None:
        await store.get_rollout("x")
        await store.close()

    asyncio.run(once())
    asyncio.run(once())
    asyncio.run(last())
    assert len(server.seen) == 3
