"""Files of the service that one call runs through: python -m benchmarks.files_passed [-v].

A server in this process, over a file, is called over gRPC. Each line has a call and the number of files of the
service of which a function ran on the event loop between its request and its answer; with -v, also their
names. Functions that run on a timer are left out: a file counts if it ran in each of several equal calls.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import Any

from lightningstore.client import AsyncLightningStore
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SERVICE = f"{os.sep}lightningstore{os.sep}service{os.sep}"
#: Equal calls that are traced.
REPEATS = 5


async def files_of(call: Callable[[], Awaitable[Any]]) -> set[str]:
    """Return the files of the service of which a function is called while a call is under way."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        await call()
    finally:
        sys.setprofile(None)
    return {path.split(SERVICE, 1)[1] for path in seen if SERVICE in path}


async def traced(call: Callable[[], Awaitable[Any]]) -> list[str]:
    """Return the files that each of several equal calls runs through; the first one warms up."""
    await call()
    runs = [await files_of(call) for _ in range(REPEATS)]
    return sorted(set.intersection(*runs))


async def measure(folder: Path) -> dict[str, list[str]]:
    """Return the files that a claim and an added span run through."""
    config = Config(backend="sqlite", db=folder / "store.db", port=0)
    server = Server(await open_store(config), config)
    await server.start()
    try:
        async with AsyncLightningStore(server.address) as store:
            await store.enqueue_rollouts([{"input": n} for n in range(REPEATS + 2)])
            (claimed,) = await store.dequeue_rollouts(1)

            def span() -> Awaitable[Any]:
                new = Span(trace_id=os.urandom(16), span_id=os.urandom(8), name="s")
                ids = {"rollout_id": claimed.rollout_id, "attempt_id": claimed.attempt.attempt_id}
                return store.add_spans(SpanBatch(spans=[new], **ids))

            return {
                "DequeueRollouts": await traced(lambda: store.dequeue_rollouts(1, worker_id="w")),
                "AddSpans": await traced(span),
            }
    finally:
        await server.stop(0.1)


def main() -> None:
    """Print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(measure(Path(folder)))
    for call, names in found.items():
        print(f"{call:16} {len(names)} files")
        if "-v" in sys.argv:
            print("".join(f"    {name}\n" for name in names), end="")


if __name__ == "__main__":
    main()
