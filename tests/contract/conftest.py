"""The world of a contract test: a store in one of four ways, with a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore
from lightningstore.client.embedded import EngineTransport
from lightningstore.service.config import Config
from lightningstore.service.server import Engine, Server, open_engine

from tests.clock import ManualClock

WAYS = ("memory-inprocess", "memory-grpc", "sqlite-inprocess", "sqlite-grpc")


class World:
    """A store, the clock it runs by, and the power to restart it."""

    store: AsyncLightningStore

    def __init__(self, way: str, folder: Path, **settings: object) -> None:
        self.backend, self.how = way.split("-")
        self.clock = ManualClock()
        self.config = Config(
            backend=self.backend, db=folder / "contract.db", port=0, grace=0.1, **settings
        )
        self.engine: Engine | None = None
        self.server: Server | None = None

    @property
    def durable(self) -> bool:
        """Whether a restart keeps anything."""
        return self.backend == "sqlite"

    async def start(self) -> None:
        """Open the store."""
        self.engine = await open_engine(self.config, self.clock)
        if self.how == "grpc":
            self.server = Server(self.engine, self.config)
            await self.server.start()
            self.store = AsyncLightningStore(self.server.address, timeout=10)
        else:
            self.store = AsyncLightningStore.over(EngineTransport(self.engine.store), timeout=10)

    async def stop(self) -> None:
        """Close the store."""
        await self.store.close()
        if self.server is not None:
            await self.server.stop(0.1)
            self.server = None
        elif self.engine is not None:
            await self.engine.close()
        self.engine = None

    async def restart(self, down: float = 0.0) -> None:
        """Close the store and open it again, `down` seconds later."""
        await self.stop()
        self.clock.jump(down)
        await self.start()

    async def settle(self) -> None:
        """Return when the loop is idle and everything sealed is durable."""
        assert self.engine is not None
        for _ in range(3):
            await asyncio.sleep(0)
            await self.engine.store.barrier()

    async def advance(self, seconds: float) -> None:
        """Let time pass: what comes due meanwhile happens."""
        await self.clock.advance(seconds)
        await self.settle()


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Back end and transport."""
    return str(request.param)


@pytest_asyncio.fixture
async def world(way: str, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh world with default settings."""
    world = World(way, tmp_path)
    await world.start()
    yield world
    await world.stop()
