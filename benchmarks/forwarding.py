"""What sharing namespaces costs and gives: python -m benchmarks.forwarding [hop] [owner] [processes] [takeover].

hop: calls through a server that forwards them ÷ calls at the owner. owner: the same for the asyncio client, which goes to
the owner by itself after its first calls. processes: four namespaces on `--processes 2` ÷ on one process. takeover: the
owner of a namespace with live rollouts is killed; seconds from the end of its lease to the first answer of another server.

The contenders take turns in slices of a second, so that what else the machine does hits them alike. Callers enqueue,
claim and report one rollout a call, over grpc.aio as bytes. The database is a PostgreSQL server of the benchmark's own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
import grpc
import grpc.aio
from lightningstore.client import AsyncLightningStore
from lightningstore.service.server import tuning
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, Attempt, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, DequeueRolloutsResponse
from lightningstore.v1.namespace_pb2 import CreateNamespaceRequest, Namespace
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest, GetServerInfoResponse

from benchmarks.loop import Op, drive
from tests.postgres import running

INPUT = b'{"question": "What is the capital of France?", "seed": 1}'
CALLERS = 48
NAMESPACES = 4
LIVE = (10_000, 100_000)
BATCH = 1000
#: Seconds of a turn.
SLICE = 1.0
GOALS = {"hop": 0.45, "owner": 0.95}
SERVICE = "/lightningstore.v1.LightningStoreService/"
ENQUEUE = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=INPUT)]).SerializeToString()
CLAIM = DequeueRolloutsRequest(limit=1).SerializeToString()

Answer = TypeVar("Answer")


@contextmanager
def server(*options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server; yields its process and its address."""
    program = Path(sys.executable).with_name("lightningstore")
    process = subprocess.Popen(
        [str(program), "serve", "--port", "0", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process, line.split(" on ")[1].split(",")[0]
    finally:
        process.terminate()
        process.wait()


class Calls:
    """The calls to one server, as bytes."""

    def __init__(self, channel: grpc.aio.Channel, namespace: str = "default") -> None:
        self._channel = channel
        self._metadata = (("x-lightning-namespace", namespace),)
        self._methods: dict[str, Any] = {}

    async def call(self, method: str, request: bytes, service: str = SERVICE) -> bytes:
        """Make a unary call."""
        path = f"{service}{method}"
        if path not in self._methods:
            self._methods[path] = self._channel.unary_unary(path)
        answer: bytes = await self._methods[path](request, metadata=self._metadata)
        return answer

    async def life(self, _caller: int) -> int:
        """Enqueue, claim and report a rollout; returns the number of calls."""
        await self.call("EnqueueRollouts", ENQUEUE)
        claimed = DequeueRolloutsResponse.FromString(await self.call("DequeueRollouts", CLAIM))
        attempt = claimed.rollouts[0].latest_attempt
        ended = Attempt(
            rollout_id=attempt.rollout_id,
            attempt_id=attempt.attempt_id,
            status=ATTEMPT_STATUS_SUCCEEDED,
        )
        await self.call("UpdateAttempt", UpdateAttemptRequest(attempt=ended).SerializeToString())
        return 3

    async def owner(self) -> str:
        """Return the address of the owner of the namespace, which is open afterwards."""
        answer = await self.call("GetServerInfo", GetServerInfoRequest().SerializeToString())
        return GetServerInfoResponse.FromString(answer).owner


async def answered(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """Return the answer of a call, which is repeated while the namespace has no owner."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
            await asyncio.sleep(0.02)


def connected(address: str) -> grpc.aio.Channel:
    """Return a connection of its own."""
    return grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])


def cpu_seconds(processes: Sequence[int]) -> float:
    """Return the CPU time that processes have used."""
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def alternate(
    ops: dict[str, Op], seconds: float, processes: Sequence[int] = ()
) -> dict[str, Any]:
    """Return the median calls per second of contenders that take turns, and the ratio of the first to the second.

    With the servers' processes, also their CPU time per call: on a machine that other programs use, calls per second depend
    on how many processes compete for it, and CPU time does not.
    """
    for op in ops.values():
        await drive(op, CALLERS, SLICE)
    speeds: dict[str, list[float]] = {name: [] for name in ops}
    used, calls = dict.fromkeys(ops, 0.0), dict.fromkeys(ops, 0)
    for _ in range(max(2, round(seconds / SLICE))):
        for name, op in ops.items():
            before = cpu_seconds(processes)
            found = await drive(op, CALLERS, SLICE)
            used[name] += cpu_seconds(processes) - before
            calls[name] += found["items"]
            speeds[name].append(found["items"] / found["seconds"])
    first, second = speeds.values()
    pairs = sorted(a / b for a, b in zip(first, second, strict=True))
    costs = {name: round(1e6 * used[name] / calls[name]) for name in ops}
    return {
        **({"microseconds of server CPU per call": costs} if processes else {}),
        "per second": {name: round(statistics.median(found)) for name, found in speeds.items()},
        "ratio": round(statistics.median(pairs), 2),
        "middle half": [round(pairs[len(pairs) // 4], 2), round(pairs[-1 - len(pairs) // 4], 2)],
    }


@asynccontextmanager
async def two_servers(url: str) -> AsyncIterator[tuple[str, str, list[int]]]:
    """Run two servers over a database; yields the address of the owner of `default`, that of the other, and both processes."""
    options = ("--database-url", url)
    with server(*options) as (one, first), server(*options) as (two, second):
        async with connected(first) as channel:
            owner = await Calls(channel).owner()
        near, far = (first, second) if owner == first else (second, first)
        yield near, far, [one.pid, two.pid]


async def hop(url: str, seconds: float) -> dict[str, Any]:
    """Compare forwarded calls with direct ones."""
    async with (
        two_servers(url) as (near, far, pids),
        connected(near) as owner,
        connected(far) as other,
    ):
        ops = {"forwarded": Calls(other).life, "direct": Calls(owner).life}
        return await alternate(ops, seconds, pids)


async def owner(url: str, seconds: float) -> dict[str, Any]:
    """Compare clients that were given the address of another server with clients that were given the owner's."""
    async with two_servers(url) as (near, far, pids), AsyncExitStack() as stack:
        ops: dict[str, Op] = {}
        for name, address in (("learned", far), ("given", near)):
            stores = [
                await stack.enter_async_context(AsyncLightningStore(address)) for _ in range(4)
            ]
            while name == "learned" and not all(map(_has_learned, stores)):
                await asyncio.gather(*(store.get_statistics() for store in stores))
                await asyncio.sleep(0.05)
            ops[name] = _life_of(stores)
        return await alternate(ops, seconds, pids)


def _has_learned(store: Any) -> bool:
    """Return whether a client has gone to the owner."""
    transport = store._transport
    while not hasattr(transport, "_owner"):
        transport = transport._transport
    return transport._owner.stub is not None


def _life_of(stores: list[AsyncLightningStore]) -> Op:
    async def life(caller: int) -> int:
        store = stores[caller % len(stores)]
        await store.enqueue_rollouts([{"input": {"question": "What is the capital of France?"}}])
        (claimed,) = await store.dequeue_rollouts(1)
        attempt = claimed.attempt
        await store.update_attempt(claimed.rollout_id, attempt.attempt_id, status="succeeded")
        return 3

    return life


async def processes(folder: Path, seconds: float) -> dict[str, Any]:
    """Compare two processes with one, for four namespaces, each with clients of its own."""
    with (
        server("--data", str(folder / "two"), "--processes", "2") as (_, two),
        server("--data", str(folder / "one"), "--processes", "1") as (_, one),
    ):
        async with AsyncExitStack() as stack:
            ops: dict[str, Op] = {}
            for name, address in (("2 processes", two), ("1 process", one)):
                ops[name] = await _over_namespaces(stack, address)
            return await alternate(ops, seconds)


async def _over_namespaces(stack: AsyncExitStack, address: str) -> Op:
    """Create the namespaces; returns lives in them, each over a connection to the process that owns it."""
    calls: list[Calls] = []
    for number in range(NAMESPACES):
        name = f"run-{number}"
        channel = await stack.enter_async_context(connected(address))
        request = CreateNamespaceRequest(namespace=Namespace(name=name)).SerializeToString()
        await Calls(channel).call(
            "CreateNamespace", request, "/lightningstore.v1.NamespaceService/"
        )
        near = await Calls(channel, name).owner() or address
        calls.append(Calls(await stack.enter_async_context(connected(near)), name))

    async def life(caller: int) -> int:
        return await calls[caller % NAMESPACES].life(caller)

    return life


async def takeover(url: str, live: int) -> dict[str, float]:
    """Kill the owner of a namespace with live rollouts.

    Returns the seconds from the end of its lease to an answer, and the CPU time of the new owner from the kill on, which other
    programs on the machine do not change.
    """
    name = f"live-{live}"
    with (
        server("--database-url", url, "--max-queue-length", "0") as (one, first),
        server("--database-url", url, "--max-queue-length", "0") as (two, second),
    ):
        async with connected(first) as channel, connected(second) as other:
            request = CreateNamespaceRequest(namespace=Namespace(name=name)).SerializeToString()
            await Calls(channel).call(
                "CreateNamespace", request, "/lightningstore.v1.NamespaceService/"
            )
            near, far = Calls(channel, name), Calls(other, name)
            specs = [RolloutSpec(input_json=INPUT)] * BATCH
            for number in range(live // BATCH):
                batch = EnqueueRolloutsRequest(rollouts=specs, request_id=f"{number}")
                await answered(partial(near.call, "EnqueueRollouts", batch.SerializeToString()))
            address = await answered(near.owner)
            (process, heir, rest) = (one, two, far) if address == first else (two, one, near)
            used = cpu_seconds([heir.pid])
            connection = await asyncpg.connect(url)
            process.send_signal(signal.SIGKILL)
            ends: float = await connection.fetchval(
                "SELECT extract(epoch FROM expires_at)::float8 FROM ls_servers WHERE address = $1",
                address,
            )
            await connection.close()
            await answered(partial(rest.call, "DequeueRollouts", CLAIM))
            seconds, cpu = time.time() - ends, cpu_seconds([heir.pid]) - used
            return {"seconds": round(seconds, 2), "CPU seconds": round(cpu, 2)}


async def measure(parts: list[str], seconds: float) -> dict[str, Any]:
    """Return the figures of the parts."""
    found: dict[str, Any] = {}
    with running() as database, tempfile.TemporaryDirectory() as folder:
        if "hop" in parts:
            found["hop"] = await hop(database.url, seconds) | {"goal": GOALS["hop"]}
        if "owner" in parts:
            found["owner"] = await owner(database.url, seconds) | {"goal": GOALS["owner"]}
        if "processes" in parts:
            found["processes"] = await processes(Path(folder), seconds)
            found["processes"]["cores"] = os.cpu_count()
        if "takeover" in parts:
            found["takeover"] = {
                f"{live:,} live": await takeover(database.url, live) for live in LIVE
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["hop", "owner", "processes", "takeover"]
    parser.add_argument("parts", nargs="*", choices=[*every, []], help="default: all")
    parser.add_argument("--seconds", type=float, default=10, help="for each contender")
    chosen = parser.parse_args()

    async def _print() -> None:
        print(json.dumps(await measure(chosen.parts or every, chosen.seconds), indent=2))

    tuning.run(_print())


if __name__ == "__main__":
    main()
