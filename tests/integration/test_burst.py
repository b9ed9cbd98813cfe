"""Calls that come all at once, because the server was stopped for a while."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path

import grpc
import grpc.aio
import pytest

from tests.integration.process import serve

pytestmark = pytest.mark.asyncio

CALLS = 5_000
#: Fewer calls each than the 100 that a connection may have at a time.
CHANNELS = 64
STATISTICS = "/lightningstore.v1.LightningStoreService/GetStatistics"


async def call(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """Make a call and return its code."""
    try:
        await channel.unary_unary(STATISTICS)(b"", timeout=120)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_client_with_more_calls_than_a_connection_may_have_is_refused_none(
    tmp_path: Path,
) -> None:
    running = await serve("--port", "0", "--backend", "memory", folder=tmp_path)
    async with grpc.aio.insecure_channel(running.address) as channel:
        await channel.channel_ready()
        codes = await asyncio.gather(*(call(channel) for _ in range(CALLS)))
        assert Counter(codes) == {grpc.StatusCode.OK: CALLS}
    assert await running.stop() == 0


async def test_calls_that_waited_for_a_stopped_server_are_answered(tmp_path: Path) -> None:
    running = await serve("--port", "0", "--backend", "memory", folder=tmp_path)
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(running.address, options) for _ in range(CHANNELS)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    running.process.send_signal(signal.SIGSTOP)
    calls = [asyncio.create_task(call(channels[n % CHANNELS])) for n in range(CALLS)]
    await asyncio.sleep(2)  # in which the calls get as far as the sockets of the server
    running.process.send_signal(signal.SIGCONT)
    assert Counter(await asyncio.gather(*calls)) == {grpc.StatusCode.OK: CALLS}
    assert await running.stop() == 0
    await asyncio.gather(*(channel.close() for channel in channels))
