"""Memory of rollouts in the queue, and how long their store takes to open: python -m benchmarks.queued_inputs.

Enqueues COUNT inputs of BYTES each into a file, opens it again, and claims everything, each in a process
of its own. Prints the resident memory that was added to that of an empty store, and seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import table
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1 import claim_pb2, rollout_pb2

#: Bytes of inputs in one call, and calls that are in flight.
CALL_BYTES = 8 << 20


def resident() -> float:
    """Return the resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


async def enqueue(store: Store, count: int, size: int) -> None:
    """Fill the queue."""
    call = table(store)["EnqueueRollouts"].call
    batch = max(1, min(10_000, CALL_BYTES // size))
    for start in range(0, count, batch):
        request = rollout_pb2.EnqueueRolloutsRequest()
        for number in range(start, min(count, start + batch)):
            request.rollouts.add(input_json=b'"%0*d"' % (size - 2, number))
        await call(request)


async def nothing(_store: Store, _count: int, _size: int) -> None:
    """Look at the store as it was opened."""


async def claim(store: Store, count: int, _size: int) -> None:
    """Claim everything, a rollout a call."""
    call = table(store)["DequeueRollouts"].call
    for _ in range(count):
        await call(claim_pb2.DequeueRolloutsRequest(limit=1))


PARTS: dict[str, Callable[[Store, int, int], Awaitable[None]]] = {
    "enqueue": enqueue,
    "open": nothing,
    "claim": claim,
}


async def run(part: str, path: Path, count: int, size: int) -> None:
    """Do one part and print what it took."""
    empty = await open_store(Config(backend="sqlite", db=path.with_name("empty.db")))
    await empty.close()
    before, start = resident(), time.perf_counter()
    store = await open_store(Config(backend="sqlite", db=path, durability="relaxed"))
    opened = time.perf_counter()
    await PARTS[part](store, count, size)
    await store.engine.barrier()
    seconds = time.perf_counter() - (opened if part == "claim" else start)
    print(f"{part:8} {resident() - before:8.1f} MB {seconds:8.2f} s", flush=True)
    await store.close()


def main() -> None:
    """Run all parts, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("bytes", type=int, nargs="?", default=100_000)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--db", type=Path)
    options = parser.parse_args()
    if options.part:
        asyncio.run(run(options.part, options.db, options.count, options.bytes))
        return
    print(f"{options.count} inputs of {options.bytes} bytes")
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            arguments = [str(options.count), str(options.bytes), "--part", part]
            arguments += ["--db", f"{folder}/store.db"]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.queued_inputs", *arguments], check=True
            )


if __name__ == "__main__":
    main()
