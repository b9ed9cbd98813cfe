"""The store without a network, in a separate process: `python -m benchmarks.inproc memory|sqlite
SECONDS`.

Writes are EnqueueRollouts of one rollout, reads are GetRollout of live rollouts, which are in
memory. Each calls the store with a message and returns a message. On SQLite 64 tasks write, because
concurrent writes share a commit, and rollouts that finished long ago are read from the file. Prints
one JSON object.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, GetRolloutRequest, RolloutSpec

from benchmarks import history
from benchmarks.loop import drive
from tests.calls import Calls

INPUT = b'{"question": "What is the capital of France?", "seed": 1}'
PAST = 50_000
WRITERS = 64


async def main(backend: str, seconds: float, path: Path) -> dict[str, Any]:
    """Return what each loop gave, by name."""
    if backend == "sqlite":
        await history.fill(path, PAST, 0)
    config = Config(backend=backend, db=path, port=0)  # type: ignore[arg-type]
    service = await open_store(config)
    store = Calls(service)
    tuning.settle_garbage()
    enqueue = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=INPUT)])
    made: list[str] = []

    async def write(_caller: int) -> int:
        made.append((await store.enqueue_rollouts(enqueue)).rollouts[0].rollout_id)
        return 1

    def reader(ids: list[str]) -> Callable[[int], Awaitable[int]]:
        turn = itertools.cycle([GetRolloutRequest(rollout_id=i) for i in ids])

        async def read(_caller: int) -> int:
            await store.get_rollout(next(turn))
            return 1

        return read

    try:
        found = {"writes": await _best(write, WRITERS if backend == "sqlite" else 1, seconds)}
        found["reads"] = await _best(reader(made[:100_000]), 1, seconds)
        if backend == "sqlite":
            past = [history.rollout_id(number * 7919 % PAST) for number in range(PAST)]
            found["reads from disk"] = await _best(reader(past), 1, seconds)
    finally:
        await service.close()
    return found


async def _best(
    op: Callable[[int], Awaitable[int]], callers: int, seconds: float
) -> dict[str, Any]:
    await drive(op, callers, 0.2)
    return await drive(op, callers, seconds)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(dir=sys.argv[3]) as folder:
        work = main(sys.argv[1], float(sys.argv[2]), Path(folder) / "store.db")

        async def _print() -> None:
            print(json.dumps(await work))

        tuning.run(_print())
