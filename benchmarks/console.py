"""What the console costs beside a million finished rollouts: `python -m benchmarks.console`.

Makes the calls of the console's pages over the HTTP port, in protobuf as its pages do, and prints the time of each and the
processor time of the server. Then keeps ten consoles open while other callers enqueue, claim and report over gRPC, and
compares their 99th percentile with that of the same callers alone, in turns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import psutil
from lightningstore.client import AsyncLightningStore
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.operations.store import open_store
from lightningstore.service.rules import measures
from lightningstore.service.rules.rows import AttemptRow, RolloutRow
from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server
from lightningstore.service.storage.base import Changes, Counters, Snapshot, Storage
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.v1 import consumer_pb2, rollout_pb2, series_pb2, statistics_pb2
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_FAILED,
    ATTEMPT_STATUS_SUCCEEDED,
    REWARD_SOURCE_REPORTED,
    Attempt,
)
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_MODE_TRAIN,
    ROLLOUT_MODE_VAL,
    ROLLOUT_STATUS_FAILED,
    ROLLOUT_STATUS_SUCCEEDED,
    ListRolloutsRequest,
    ListRolloutsResponse,
    Rollout,
)

STORE = "lightningstore.v1.LightningStoreService"
NEWEST, PAGE = "start_time desc", 50
AT_ONCE = 5000
CONSOLES, OVERVIEWS, CALLERS = 10, 3, 8
#: Seconds between two calls of GetStatistics of a console.
PERIOD = 0.5
#: Minimum seconds between two loads of the overview.
OVERVIEW_PAUSE = 2.0
#: Counters that change by themselves; a console does not load its page again for them.
PASSING = ("uptime", "waiter_count", "finished_last_minute_count", "file_bytes", "disk_free_bytes")


def history(count: int) -> Iterator[Changes]:
    """Yield commits with finished rollouts, of which a tenth failed. The last one finished now."""
    dice = random.Random(1)
    mean_ns = 20_000_000
    end_ns = time.time_ns() - count * mean_ns
    failed = 0
    for start in range(1, count + 1, AT_ONCE):
        changes = Changes(size=1 << 20)
        for key in range(start, min(start + AT_ONCE, count + 1)):
            end_ns += dice.randrange(2 * mean_ns)
            fails = dice.random() < 0.1
            failed += fails
            record = Rollout(
                rollout_id=f"ro-{dice.getrandbits(48):012x}",
                status=ROLLOUT_STATUS_FAILED if fails else ROLLOUT_STATUS_SUCCEEDED,
                mode=ROLLOUT_MODE_VAL if dice.random() < 0.1 else ROLLOUT_MODE_TRAIN,
                group_id=f"step-{key // 64}/{key // 8 % 8}",
                labels={"topic": dice.choice(("sums", "products"))},
                attempt_count=1,
                latest_attempt_id="at-00000001",
                completion_number=key,
            )
            attempt = Attempt(
                rollout_id=record.rollout_id,
                attempt_id="at-00000001",
                sequence_number=1,
                status=ATTEMPT_STATUS_FAILED if fails else ATTEMPT_STATUS_SUCCEEDED,
                worker_id=f"worker-{dice.randrange(50)}",
            )
            if fails:
                attempt.failure.type, attempt.failure.message = "ConnectionError", "it was lost"
            else:
                attempt.reward, attempt.reward_source = dice.random(), REWARD_SOURCE_REPORTED
            record.start_time.FromNanoseconds(end_ns - 20_000_000_000)
            attempt.start_time.FromNanoseconds(end_ns - dice.randrange(20_000_000_000))
            for message in (record, attempt):
                message.end_time.FromNanoseconds(end_ns)
            found = measures.of(record, attempt, attempt)
            changes.rollouts[key] = RolloutRow(key, record, 0, 0, found)
            changes.attempts[key] = AttemptRow(key, key, attempt, 0)
            changes.labels[key] = dict(record.labels)
            changes.inputs.append((key, b'{"question": "What is 6 times 7?"}'))
        last = min(start + AT_ONCE - 1, count)
        changes.counters = Counters(
            rollout_key=last,
            attempt_key=last,
            completion_number=last,
            rollouts={ROLLOUT_STATUS_SUCCEEDED: last - failed, ROLLOUT_STATUS_FAILED: failed},
            attempts={ATTEMPT_STATUS_SUCCEEDED: last - failed, ATTEMPT_STATUS_FAILED: failed},
        )
        yield changes


class FilledMemory(MemoryStorage):
    """The memory back end with a past."""

    def __init__(self, past: Iterable[Changes]) -> None:
        super().__init__()
        self._past = past

    async def open(self) -> Snapshot:
        snapshot = await super().open()
        for changes in self._past:
            await self.commit(changes)
            snapshot.counters = changes.counters
        return snapshot


async def fill(path: Path, count: int) -> None:
    """Write a data file with a past."""
    storage = SqliteStorage(path, full_sync=False)
    await storage.open()
    for changes in history(count):
        await storage.commit(changes)
    await storage.close()


async def serve(backend: str, path: Path, count: int) -> None:
    """Serve a store with a past until the process ends; print where."""
    config = Config(backend="memory", port=0)
    storage: Storage = FilledMemory(history(count))
    if backend == "sqlite":
        storage = SqliteStorage(path, full_sync=True)
    store = await open_store(storage, SystemClock(), config.limits(), config.retention())
    server = Server(store, config)
    await server.start()
    tuning.settle_garbage()
    print(server.address, server.http_port, flush=True)
    await asyncio.Event().wait()


class Place(NamedTuple):
    """A server process, and where it is."""

    process: psutil.Process
    address: str
    port: int

    def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        used = self.process.cpu_times()
        return float(used.user + used.system)


@contextlib.contextmanager
def serving(backend: str, path: Path, count: int) -> Iterator[Place]:
    """Start a server with a past."""
    command = [sys.executable, "-m", "benchmarks.console", "--serve", backend]
    command += ["--db", str(path), "--rollouts", str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address, port = process.stdout.readline().split()
        try:
            yield Place(psutil.Process(process.pid), address, int(port))
        finally:
            process.kill()


class Console:
    """Makes calls over the HTTP port."""

    def __init__(self, session: aiohttp.ClientSession, port: int) -> None:
        self._session, self._port = session, port
        self.count = [0, 0]  # calls, bytes of the answers

    async def call(self, request: Any, kind: str = "proto") -> bytes:
        """Make a call, in protobuf or in JSON."""
        name = type(request).__name__.removesuffix("Request")
        data = request.SerializeToString() if kind == "proto" else b"{}"
        headers = {"Content-Type": f"application/{kind}"}
        url = f"http://127.0.0.1:{self._port}/{STORE}/{name}"
        async with self._session.post(url, data=data, headers=headers) as answer:
            assert answer.status == 200, await answer.text()
            content = await answer.read()
        self.count = [self.count[0] + 1, self.count[1] + len(content)]
        return content

    async def page(self, request: ListRolloutsRequest) -> ListRolloutsResponse:
        """Return a page of a list."""
        return ListRolloutsResponse.FromString(await self.call(request))


def lists() -> dict[str, ListRolloutsRequest]:
    """Return the first pages that the list shows, by filter and order."""
    request, order = ListRolloutsRequest, {"order_by": NEWEST, "page_size": PAGE}
    return {
        "newest": request(**order),
        "oldest": request(order_by="start_time", page_size=PAGE),
        "best reward": request(order_by="reward desc", page_size=PAGE),
        "ids": request(order_by="rollout_id", page_size=PAGE),
        "by status": request(order_by="status desc", page_size=PAGE),
        "failed": request(statuses=[ROLLOUT_STATUS_FAILED], **order),
        "running (none)": request(statuses=[rollout_pb2.ROLLOUT_STATUS_RUNNING], **order),
        "validation": request(modes=[ROLLOUT_MODE_VAL], **order),
        "label": request(labels={"topic": "sums"}, **order),
        "group": request(group_ids=["step-7/3"], **order),
        "reward from 0.9 to 0.95": request(min_reward=0.9, max_reward=0.95, **order),
        "failed with reward (none)": request(
            statuses=[ROLLOUT_STATUS_FAILED], min_reward=0.9, **order
        ),
        "id contains": request(rollout_id_contains="abcd", **order),
    }


def overview(last: int) -> list[Any]:
    """Return the calls of the overview for a namespace, beside its counters; `last` is its last completion number."""
    sparkline = series_pb2.GetSeriesRequest(
        measure=series_pb2.SERIES_MEASURE_REWARD,
        axis=series_pb2.SERIES_AXIS_COMPLETION_NUMBER,
        bucket_count=40,
        first_number=max(1, last - 999),
    )
    return [sparkline, consumer_pb2.ListConsumersRequest()]


async def measure_pages(place: Place, count: int, repetitions: int) -> None:
    """Print the time of each page of the console."""
    print("| page | ms, median | processor of the server, ms |")
    print("| --- | --- | --- |")
    async with aiohttp.ClientSession() as session:
        console = Console(session, place.port)

        async def row(name: str, requests: list[Any], kind: str = "proto") -> None:
            times, before = [], place.cpu()
            for _ in range(repetitions):
                began = time.perf_counter()
                for request in requests:
                    await console.call(request, kind)
                times.append((time.perf_counter() - began) * 1000)
            used = (place.cpu() - before) * 1000 / repetitions
            print(f"| {name} | {statistics.median(times):.1f} | {used:.1f} |", flush=True)

        await row("overview", [statistics_pb2.GetStatisticsRequest(), *overview(count)])
        for name, request in lists().items():
            await row(f"rollouts: {name}", [request])
            last = await console.page(request)
            if last.next_page_token:
                request.page_token = last.next_page_token
                await row(f"rollouts: {name}, next page", [request])
        await row("statistics", [statistics_pb2.GetStatisticsRequest()])
        await row("100 rollouts in JSON", [ListRolloutsRequest()], "json")


async def open_console(console: Console, page: Callable[[int], list[Any]], pause: float) -> None:
    """Be a console with a page open: it asks for counters, and loads the page again if they changed.

    `page` returns the calls of the page by the last completion number; `pause` is the least time between two loads
    of the page, in seconds.
    """
    last, loaded = b"", -pause
    await asyncio.sleep(random.uniform(0, PERIOD))
    while True:
        counters = await console.call(statistics_pb2.GetStatisticsRequest())
        found = statistics_pb2.GetStatisticsResponse.FromString(counters)
        for name in PASSING:
            found.ClearField(name)
        now = found.SerializeToString(deterministic=True)
        if now != last and time.perf_counter() - loaded >= pause:
            last, loaded = now, time.perf_counter()
            for request in page(found.last_completion_number):
                await console.call(request)
        await asyncio.sleep(PERIOD)


async def open_consoles(port: int) -> None:
    """Be ten consoles, of which three have the overview open and the others a list; print the calls of each second.

    At the lowest priority: browsers run on other machines than the server and its callers.
    """
    os.nice(19)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        open_ones = [Console(session, port) for _ in range(CONSOLES)]
        async with asyncio.TaskGroup() as tasks:
            for number, console in enumerate(open_ones):
                page = overview if number < OVERVIEWS else lambda _: [lists()["newest"]]
                pause = OVERVIEW_PAUSE if number < OVERVIEWS else 0.0
                tasks.create_task(open_console(console, page, pause))
            while True:
                await asyncio.sleep(1)
                calls, size = (sum(console.count[n] for console in open_ones) for n in (0, 1))
                print(calls, size, flush=True)


@contextlib.asynccontextmanager
async def consoles(place: Place) -> AsyncIterator[list[list[int]]]:
    """Keep consoles open, in a process of their own; yield their calls and the bytes of the answers, second by second."""
    command = ("-m", "benchmarks.console", "--consoles", str(place.port))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    seconds: list[list[int]] = []

    async def read(lines: asyncio.StreamReader) -> None:
        seconds.extend([[int(word) for word in line.split()] async for line in lines])

    await process.stdout.readline()  # they are open
    reading = asyncio.create_task(read(process.stdout))
    yield seconds
    process.kill()
    await process.wait()
    await reading


async def caller(store: AsyncLightningStore, number: int, until: float) -> list[float]:
    """Enqueue, claim and report until a time; return the seconds of each call."""
    seconds: list[float] = []

    async def timed(call: Any) -> Any:
        began = time.perf_counter()
        result = await call
        seconds.append(time.perf_counter() - began)
        return result

    queue = f"caller-{number}"
    while time.perf_counter() < until:
        await timed(store.enqueue_rollout({"question": number}, queue=queue))
        (claimed,) = await timed(store.dequeue_rollouts(1, queues=[queue]))
        report = store.update_attempt(
            claimed.rollout_id, claimed.attempt.attempt_id, status="succeeded", reward=0.5
        )
        await timed(report)
        await asyncio.sleep(0.02)
    return seconds


async def measure_others(place: Place, slices: int, seconds: float) -> None:
    """Print the percentiles of other callers, with and without open consoles."""
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    used: dict[bool, float] = {False: 0.0, True: 0.0}
    asked: list[list[int]] = []  # by all consoles in a second: calls, bytes of the answers
    async with contextlib.AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(AsyncLightningStore(place.address))
            for _ in range(CALLERS)
        ]
        for number in range(2 * slices):
            is_open = number % 2 == 1
            async with consoles(place) if is_open else contextlib.nullcontext([]) as totals:
                before, until = place.cpu(), time.perf_counter() + seconds
                work = [caller(store, n, until) for n, store in enumerate(stores)]
                times = [t for part in await asyncio.gather(*work) for t in part]
                used[is_open] += place.cpu() - before
                found[is_open].append(sorted(times))
            asked += [
                [now - then for then, now in zip(*pair, strict=True)]
                for pair in itertools.pairwise(totals)
            ]

    async with consoles(place):
        before = place.cpu()
        await asyncio.sleep(slices * seconds)
        alone = (place.cpu() - before) / (slices * seconds)

    def percentile(times: list[float], share: float) -> float:
        return times[int(share * len(times))] * 1000

    print("| consoles | calls | p50, ms | p99, ms | server's processor |")
    print("| --- | --- | --- | --- | --- |")
    p99 = {}
    for is_open, parts in found.items():
        p50 = statistics.median(percentile(part, 0.5) for part in parts)
        p99[is_open] = statistics.median(percentile(part, 0.99) for part in parts)
        share = used[is_open] / (slices * seconds)
        calls = sum(map(len, parts))
        print(
            f"| {CONSOLES if is_open else 0} | {calls} | {p50:.2f} | {p99[is_open]:.2f} | {share:.0%} |"
        )
    calls, size = (statistics.fmean(part) for part in zip(*asked, strict=True))
    print(f"{CONSOLES} consoles: {calls:.0f} calls and {size / 1000:.0f} kB a second")
    print(f"{CONSOLES} consoles alone: {alone:.1%} of a processor of the server")
    print(f"p99 with {CONSOLES} consoles: {p99[True] / p99[False]:.2f} times that without")


def main() -> None:
    """Measure both back ends."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.console", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--backend", choices=("memory", "sqlite"), help="default: both")
    parser.add_argument("--reps", type=int, default=10, help="calls of each page (default: 10)")
    parser.add_argument("--slices", type=int, default=8, help="slices with consoles (default: 8)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a slice (default: 5)")
    parser.add_argument("--db", type=Path, help="file to keep, filled if it is missing")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--consoles", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        if options.serve == "sqlite" and not options.db.exists():
            asyncio.run(fill(options.db, options.rollouts))
        tuning.keep_freed_memory()
        tuning.run(serve(options.serve, options.db, options.rollouts))
    if options.consoles:
        asyncio.run(open_consoles(options.consoles))
    with tempfile.TemporaryDirectory() as folder:
        path = options.db or Path(folder) / "console.db"
        for backend in [options.backend] if options.backend else ["memory", "sqlite"]:
            print(f"\n{backend}, {options.rollouts} finished rollouts\n")
            with serving(backend, path, options.rollouts) as place:
                asyncio.run(measure_pages(place, options.rollouts, options.reps))
                if options.slices:
                    asyncio.run(measure_others(place, options.slices, options.seconds))


if __name__ == "__main__":
    main()
