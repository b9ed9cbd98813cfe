"""Many clients, slow ones, and ones that go away without a word: memory stays bounded, others are served."""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from lightningstore.client import AsyncLightningStore
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    completion_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
)
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.lab import Lab
from tests.faults.proxy import Proxy

#: Maximum number of concurrent streams of a connection.
STREAMS_A_CONNECTION = 100
MIB = 1 << 20
#: What a connection's buffers may hold for one reader that does not read (gRPC's own, measured: 4 to 9 MiB).
READER_BYTES = 12 * MIB
#: Others' calls beside such readers, 99 of 100, on a machine with other work. If these held the store up, it would answer
#: once they read. Seconds.
LONGEST_SECONDS = 1.0


@asynccontextmanager
async def connections(address: str, streams: int) -> AsyncIterator[list[Any]]:
    """Open the connections for `streams` concurrent streams; yield their stubs."""
    count = -(-streams // STREAMS_A_CONNECTION) + 1
    options = [("grpc.use_local_subchannel_pool", 1)]
    channels = [grpc.aio.insecure_channel(address, options) for _ in range(count)]
    try:
        yield [LightningStoreServiceStub(channel) for channel in channels]
    finally:
        await asyncio.gather(*(channel.close() for channel in channels))


def batch(name: tuple[str, str], count: int = 1, size: int = 0) -> Any:
    spans = [
        Span(trace_id=b"t" * 16, span_id=os.urandom(8), name="s" * max(1, size))
        for _ in range(count)
    ]
    return {"rollout_id": name[0], "attempt_id": name[1], "spans": spans}


async def started(store: AsyncLightningStore, count: int) -> list[tuple[str, str]]:
    """Start rollouts; returns their names and attempts."""
    found = []
    for n in range(count):
        rollout = await store.start_rollout(n)
        found.append((rollout.rollout_id, rollout.attempt.attempt_id))
    return found


class Pulse:
    """Calls the server all the time and keeps how long each call took."""

    def __init__(self, stub: Any) -> None:
        self._stub = stub
        self.seconds: list[float] = []

    async def beat(self, seconds: float) -> float:
        """Go on for so long; returns the 99th percentile in seconds."""
        self.seconds = []
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            begin = time.monotonic()
            await self._stub.GetStatistics(statistics_pb2.GetStatisticsRequest(), timeout=30)
            self.seconds.append(time.monotonic() - begin)
        return statistics.quantiles(self.seconds, n=100)[-1]


def test_five_thousand_waiters_are_all_told(lab: Lab, tries) -> None:
    count = tries("waiters")

    async def main() -> None:
        async with (
            AsyncLightningStore(lab.address, timeout=60) as store,
            connections(lab.address, count) as stubs,
        ):
            names = await started(store, 50)
            before = lab.view().memory_info().rss

            async def wait(n: int) -> int:
                request = completion_pb2.WaitForRolloutsRequest(rollout_ids=[names[n % 50][0]])
                stream = stubs[n % (len(stubs) - 1)].WaitForRollouts(request, timeout=120)
                await stream.initial_metadata()
                standing.release()
                return len([r async for message in stream for r in message.rollouts])

            standing = asyncio.Semaphore(0)
            waiting = []
            for n in range(count):
                waiting.append(asyncio.create_task(wait(n)))
                # gRPC refuses calls when more than a thousand wait to be picked up; clients try again.
                if n % 200 == 199 or n == count - 1:
                    for _ in range(len(waiting) - (n // 200) * 200):
                        await standing.acquire()
            grown = lab.view().memory_info().rss - before
            assert (await store.get_statistics()).waiter_count == count
            for name in names:
                await store.update_attempt(*name, status="succeeded")
            assert await asyncio.gather(*waiting) == [1] * count
            assert (await store.get_statistics()).waiter_count == 0
            print(f"{count} waiters took {grown / count / 1024:.0f} KiB each")
            assert grown < count * 100 * 1024

    lab.start()
    asyncio.run(main())


def test_a_thousand_ingest_streams_at_once_are_all_stored(lab: Lab, tries) -> None:
    count = tries("ingest streams")

    async def main() -> None:
        async with (
            AsyncLightningStore(lab.address, timeout=60) as store,
            connections(lab.address, count) as stubs,
        ):
            names = await started(store, 20)
            all_open = asyncio.Event()
            opened = 0

            async def ingest(n: int) -> int:
                async def messages() -> AsyncIterator[Any]:
                    nonlocal opened
                    yield span_pb2.IngestSpansRequest(batch=batch(names[n % 20], 5))
                    opened += 1
                    if opened == count:
                        all_open.set()
                    await all_open.wait()
                    yield span_pb2.IngestSpansRequest(batch=batch(names[n % 20], 5))

                stub = stubs[n % (len(stubs) - 1)]
                return int((await stub.IngestSpans(messages(), timeout=120)).result.accepted_count)

            assert await asyncio.gather(*(ingest(n) for n in range(count))) == [10] * count
            assert (await store.get_statistics()).span_count == 10 * count

    lab.start()
    asyncio.run(main())


def test_cancelled_streams_leave_nothing_behind(lab: Lab, tries) -> None:
    count = tries("cancelled streams")

    async def main() -> None:
        async with (
            AsyncLightningStore(lab.address, timeout=60) as store,
            connections(lab.address, 90) as stubs,
        ):
            (name,) = await started(store, 1)
            await store.add_spans(span_pb2.SpanBatch(**batch(name, 1000, 500)))

            async def cancel(n: int) -> None:
                if n % 3 == 0:
                    request = completion_pb2.WaitForRolloutsRequest(rollout_ids=[name[0]])
                    stream = stubs[0].WaitForRollouts(request)
                    await stream.initial_metadata()
                elif n % 3 == 1:
                    stream = stubs[0].IngestSpans()
                    await stream.write(span_pb2.IngestSpansRequest(batch=batch(name)))
                    stream.cancel()
                    # grpc.aio keeps the stream's place on the connection until somebody awaits it.
                    await asyncio.gather(stream, return_exceptions=True)
                else:
                    stream = stubs[0].QuerySpans(span_pb2.QuerySpansRequest(rollout_id=name[0]))
                    await stream.read()
                stream.cancel()

            refused: list[bool] = []
            readings: list[int] = []
            for start in range(0, count, 90):
                part = range(start, min(count, start + 90))
                for done in await asyncio.gather(*map(cancel, part), return_exceptions=True):
                    # gRPC refuses some while the server has not seen yet that others are gone.
                    assert done is None or isinstance(done, grpc.aio.AioRpcError), done
                    refused.append(done is not None)
                readings.append(lab.view().memory_info().rss)
            while (await store.get_statistics()).waiter_count:  # pytest's own timeout ends it
                await asyncio.sleep(0.01)
            # Buffers of 90 queries come and go: what stays is the least of many readings.
            quarter = len(readings) // 4
            grown = min(readings[-quarter:]) - min(readings[quarter : 2 * quarter])
            print(
                f"{count} streams, {sum(refused)} refused, {grown / MIB:+.1f} MiB from the second quarter to the last"
            )
            assert sum(refused) < count / 10
            assert grown < 12 * MIB

    lab.start()
    asyncio.run(main())


def test_reader_that_never_reads_costs_its_buffers_and_holds_up_nobody(lab: Lab) -> None:
    """Five clients wait for 2,000 rollouts with 50 KB of input each and read nothing: 500 MB of answers."""

    async def main(proxy: Proxy) -> None:
        async with (
            AsyncLightningStore(lab.address, timeout=60) as store,
            connections(lab.address, 1) as stubs,
            connections(proxy.address, 5 * STREAMS_A_CONNECTION) as stalled,
        ):
            pulse = Pulse(stubs[0])
            idle = await pulse.beat(1.0)
            ids = [f"r{n}" for n in range(2000)]
            for start in range(0, 2000, 200):
                await store.enqueue_rollouts(
                    [{"input": "x" * 50_000, "rollout_id": i} for i in ids[start : start + 200]]
                )
            request = completion_pb2.WaitForRolloutsRequest(rollout_ids=ids)
            streams = [stub.WaitForRollouts(request) for stub in stalled[:5]]
            for stream in streams:
                await stream.initial_metadata()
            proxy.hold(up=False)
            before = lab.view().memory_info().rss
            beat = asyncio.create_task(pulse.beat(3.0))
            for start in range(0, 2000, 100):
                await store.cancel_rollouts(ids[start : start + 100])
            busy = await beat
            grown = lab.view().memory_info().rss - before
            print(
                f"p99 {idle * 1e3:.1f} ms idle, {busy * 1e3:.1f} ms busy; {grown / MIB:.0f} MiB more"
            )
            assert grown < 5 * READER_BYTES
            assert busy < LONGEST_SECONDS
            proxy.release()
            for stream in streams:
                assert sum([len(message.rollouts) async for message in stream]) == 2000

    lab.start()
    with Proxy(lab.port) as proxy:
        asyncio.run(main(proxy))


def test_stalled_query_lets_the_log_of_the_file_be_folded_back(lab: Lab, tries) -> None:
    """A reader holds a query open while spans pour in: the write-ahead log must not grow with them."""
    megabytes = tries("ingested megabytes")

    async def main() -> None:
        async with (
            AsyncLightningStore(lab.address, timeout=120) as store,
            connections(lab.address, 1) as stubs,
            connections(lab.address, 1) as stalled,
        ):
            read, written = await started(store, 2)
            for _ in range(40):
                await store.add_spans(span_pb2.SpanBatch(**batch(read, 100, 10_000)))
            stream = stalled[0].QuerySpans(span_pb2.QuerySpansRequest(rollout_id=read[0]))
            count = sum(len(b.spans) for b in (await stream.read()).batches)
            most = 0  # and from here on nothing is read: flow control stops the server
            for _ in range(megabytes):
                request = span_pb2.AddSpansRequest(batch=batch(written, 100, 10_000))
                await stubs[0].AddSpans(request, timeout=60)
                most = max(most, Path(f"{lab.db}-wal").stat().st_size)
            print(f"{megabytes} MB stored, the log had at most {most / MIB:.0f} MiB")
            assert most < 256 * MIB * min(1.0, megabytes / 500)
            while (message := await stream.read()) is not grpc.aio.EOF:
                count += sum(len(b.spans) for b in message.batches)
            assert count == 4000

    lab.start()
    asyncio.run(main())


def slope(readings: list[tuple[float, int]]) -> float:
    """Return how much a figure grows a minute, of (seconds, figure)."""
    return 60 * statistics.linear_regression(*zip(*readings, strict=True)).slope


def test_memory_stays_flat_over_a_soak(lab: Lab, tries) -> None:
    """Whole lives for minutes, 20 spans each: memory, descriptors and threads after a first quarter."""
    seconds = tries("soak seconds")

    async def main() -> None:
        async with connections(lab.address, 700) as stubs:
            lives = 0
            end = time.monotonic() + seconds
            readings: list[tuple[float, int, int, int]] = []

            async def live(stub: Any) -> None:
                nonlocal lives
                while time.monotonic() < end:
                    spec = rollout_pb2.RolloutSpec(input_json=b'"%s"' % (b"x" * 1000))
                    made = await stub.EnqueueRollouts(
                        rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
                    )
                    waiting = stub.WaitForRollouts(
                        completion_pb2.WaitForRolloutsRequest(
                            rollout_ids=[made.rollouts[0].rollout_id]
                        )
                    )
                    await waiting.initial_metadata()
                    claimed = await claim(stub)
                    await stub.IngestSpans(
                        iter([span_pb2.IngestSpansRequest(batch=batch(claimed, 20, 500))])
                    )
                    attempt = {"rollout_id": claimed[0], "attempt_id": claimed[1], "status": 3}
                    await stub.UpdateAttempt(attempt_pb2.UpdateAttemptRequest(attempt=attempt))
                    async for _ in waiting:
                        pass
                    lives += 1

            async def look() -> None:
                while time.monotonic() < end:
                    view = lab.view()
                    figures = view.memory_info().rss, view.num_fds(), view.num_threads()
                    readings.append((time.monotonic(), *figures))
                    await asyncio.sleep(seconds / 40)

            await asyncio.gather(look(), *(live(stub) for stub in stubs))
            assert lives > seconds
            late = readings[len(readings) // 4 :]
            memory, handles, threads = (slope([(r[0], r[n]) for r in late]) for n in (1, 2, 3))
            print("MiB:", *(f"{reading[1] / MIB:.0f}" for reading in readings[::4]))
            print(
                f"{lives} lives in {seconds} s: {late[0][1] / MIB:.0f} to {late[-1][1] / MIB:.0f} MiB, "
                f"{memory / MIB:+.2f} MiB a minute; descriptors {late[-1][2]}, {handles:+.2f} a minute; "
                f"threads {late[-1][3]}, {threads:+.2f} a minute"
            )
            # What a finished rollout leaves in memory is a place in caches of fixed size, which a short soak
            # only fills, and for a while what the garbage collector has not found yet.
            assert late[-1][1] - late[0][1] < 90 * MIB
            if seconds >= 300:
                assert memory < 2 * MIB
                assert abs(handles) < 1
                assert abs(threads) < 1
            assert late[-1][3] < 50

    lab.start()
    asyncio.run(main())


async def claim(stub: Any) -> tuple[str, str]:
    answer = await stub.DequeueRollouts(claim_pb2.DequeueRolloutsRequest(limit=1))
    return answer.rollouts[0].rollout_id, answer.rollouts[0].latest_attempt.attempt_id
