"""Overload: three times the peak rate, compression bombs, cancelled callers, and recovery."""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time

import grpc
import pytest
from lightningstore.client import AsyncLightningStore
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store
from lightningstore.v1 import rollout_pb2

from benchmarks.wire import CallFailed, Connection, connect
from tests.faults.lab import Lab

SERVICE = "/lightningstore.v1.LightningStoreService/"
ENQUEUE = f"{SERVICE}EnqueueRollouts".encode()
TASK = rollout_pb2.EnqueueRolloutsRequest(rollouts=[{"input_json": b"1"}]).SerializeToString()
CONNECTIONS = 30
STREAMS_A_CONNECTION = 100
FACTOR = 3
REPORTERS = 8
BACK_SECONDS = 5.0
MIB = 1 << 20


class Load:
    """Enqueues at a rate, whatever the answers; a connection with a hundred calls open takes no more."""

    def __init__(self, connections: list[Connection]) -> None:
        self._connections = connections
        self._open = [0] * len(connections)
        self.sent = self.answered = self.shed = self.failed = 0

    async def offer(self, rate: float, seconds: float) -> None:
        begin = time.monotonic()
        offered = 0
        while (past := time.monotonic() - begin) < seconds:
            while offered < rate * past:
                self._send(offered % len(self._connections))
                offered += 1
            await asyncio.sleep(0.005)

    async def peak(self, seconds: float) -> float:
        """Keep a few connections full; returns how many calls a second were answered."""
        begin, before = time.monotonic(), self.answered
        while time.monotonic() - begin < seconds:
            for n in range(3):
                while self._open[n] < STREAMS_A_CONNECTION:
                    self._send(n)
            await asyncio.sleep(0.001)
        return (self.answered - before) / seconds

    def _send(self, n: int) -> None:
        if self._open[n] >= STREAMS_A_CONNECTION:
            self.shed += 1
            return
        self._open[n] += 1
        self.sent += 1
        self._connections[n].call(ENQUEUE, TASK).add_done_callback(lambda done: self._end(n, done))

    def _end(self, n: int, done: asyncio.Future[bytes]) -> None:
        self._open[n] -= 1
        failed = done.cancelled() or isinstance(done.exception(), CallFailed)
        self.failed += failed
        self.answered += not failed


async def report_all_the_time(store: AsyncLightningStore, done: asyncio.Event) -> list[float]:
    """Start, beat for and finish rollouts; returns how long the heartbeats and outcomes took."""
    took = []
    while not done.is_set():
        rollout = await store.start_rollout(1)
        own = (rollout.rollout_id, rollout.attempt.attempt_id)
        for report in (
            lambda own=own: store.heartbeat("w", attempts=[own]),
            lambda own=own: store.update_attempt(*own, status="succeeded"),
        ):
            began = time.monotonic()
            await report()
            took.append(time.monotonic() - began)
    return took


def test_overload_lets_reports_through_and_is_over_when_it_ends(lab: Lab, tries) -> None:
    """Three times the measured peak for seconds, from 30 connections; then normal again within 5 s."""
    lab.start()
    seconds = tries("overload seconds")

    async def main() -> None:
        connections = [await connect(lab.address) for _ in range(CONNECTIONS)]
        async with AsyncLightningStore(lab.address, timeout=30) as store:
            load, done = Load(connections), asyncio.Event()
            idle = statistics.median([await timed(store) for _ in range(50)])
            peak = await load.peak(2.0)
            reporting = [
                asyncio.create_task(report_all_the_time(store, done)) for _ in range(REPORTERS)
            ]
            await load.offer(FACTOR * peak, seconds)
            ended = time.monotonic()
            while await timed(store) > max(5 * idle, 0.05):
                assert time.monotonic() - ended < BACK_SECONDS, "still slow"
            back = time.monotonic() - ended
            done.set()
            took = [took for some in await asyncio.gather(*reporting) for took in some]
            print(
                f"peak {peak:.0f} calls/s; offered {FACTOR * peak:.0f}/s for {seconds} s: {load.sent} sent, "
                f"{load.shed} held back by HTTP/2, {load.failed} refused; {len(took)} reports, none failed, "
                f"slowest {max(took):.2f} s; normal again after {back:.2f} s"
            )
            assert load.shed, "no overload"
            assert len(took) >= 2 * REPORTERS
        for connection in connections:
            connection.close()

    asyncio.run(main())


async def timed(store: AsyncLightningStore) -> float:
    began = time.monotonic()
    await store.get_server_info()
    return time.monotonic() - began


@pytest.mark.parametrize("method", ["AddSpans", "EnqueueRollouts", "IngestSpans", "Export"])
def test_bomb_of_zeros_is_refused_before_it_unfolds(lab: Lab, method: str) -> None:
    """256 MiB that gzip makes 250 KB of: refused, in bounded memory, and the next call works."""
    lab.start()
    path = SERVICE + method
    if method == "Export":
        path = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
    bomb = bytes(256 * MIB)
    with grpc.insecure_channel(lab.address, [("grpc.max_send_message_length", -1)]) as channel:
        before = lab.view().memory_info().rss
        with pytest.raises(grpc.RpcError) as caught:
            if method == "IngestSpans":
                call = channel.stream_unary(path)
                call(iter([bomb]), compression=grpc.Compression.Gzip, timeout=60)
            else:
                call = channel.unary_unary(path)
                call(bomb, compression=grpc.Compression.Gzip, timeout=60)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED, caught.value
        assert channel.unary_unary(f"{SERVICE}GetServerInfo")(b"", timeout=10)
    assert lab.view().memory_info().rss - before < 160 * MIB


GIVES_UP = """
import asyncio, sys, grpc
async def main(address, request, count):
    async with grpc.aio.insecure_channel(address) as channel:
        wait = channel.unary_stream("/lightningstore.v1.LightningStoreService/WaitForRollouts")
        async def one():
            call = wait(bytes.fromhex(request))
            await call.initial_metadata()
            call.cancel()
        for _ in range(count // 90):
            await asyncio.gather(*(one() for _ in range(90)), return_exceptions=True)
asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
"""


def test_calls_that_were_given_up_leave_no_status_waiting_to_be_sent() -> None:
    """From another process: in one's own the cancellation never overtakes its call."""

    async def main() -> None:
        config = Config(backend="memory", port=0, grace=0.1)
        server = Server(await open_store(config), config)
        await server.start()
        async with AsyncLightningStore(server.address) as store:
            rollout = await store.start_rollout(1)
            request = (
                b"\x0a" + bytes([len(rollout.rollout_id)]) + rollout.rollout_id.encode()
            ).hex()
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", GIVES_UP, server.address, request, "1800"
            )
            assert await process.wait() == 0
            while (await store.get_statistics()).waiter_count:
                await asyncio.sleep(0.01)
        gc.collect()
        left = [o for o in gc.get_objects() if type(o).__name__ == "SendStatusFromServerOperation"]
        assert len(left) < 10
        await server.stop(0.1)

    asyncio.run(main())
