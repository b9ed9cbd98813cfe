"""A server in this process on a clock that stands still, and raw channels to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio

from tests.contract.conftest import World, prepare_way


@pytest_asyncio.fixture(params=["memory-grpc", "sqlite-grpc"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh world behind gRPC."""
    prepare_way(request.param, request)
    world = World(request.param, tmp_path)
    await world.start()
    yield world
    await world.stop()


@pytest_asyncio.fixture
async def channel(world: World) -> AsyncIterator[grpc.aio.Channel]:
    """A channel without a client."""
    assert world.server is not None
    async with grpc.aio.insecure_channel(world.server.address) as channel:
        yield channel
