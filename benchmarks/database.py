"""PostgreSQL compared with a data file, in process: python -m benchmarks.database.

Starts a PostgreSQL server of its own. 64 callers enqueue, claim and report one rollout a call; 8 callers store 100 spans a
call, in the database compressed. The contenders take turns in slices of a second, so that what else the machine does hits them
alike. `2 ms` is the database with commit_delay = 2000, which is what a commit costs with a synchronous standby in the next
zone. A life is enqueue, claim and report. Prints calls per second and ratios as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
from lightningstore.service.operations.store import Store
from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_SUCCEEDED,
    Attempt,
    UpdateAttemptRequest,
)
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, StartRolloutRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch

from benchmarks.loop import drive
from benchmarks.spans import SCOPE, block, resource
from tests.calls import Calls
from tests.postgres import running

INPUT = b'{"question": "What is the capital of France?", "seed": 1}'
CALLERS, SPAN_CALLERS, SPANS = 64, 8, 100
#: Blocks of spans, each of which an attempt gets once.
BLOCKS = 20
SLICE = 1.0
FILLED_AT_ONCE = 5000
GOALS = {
    "enqueue": 0.8,
    "claim": 0.6,
    "update": 0.7,
    "spans": 0.5,
    "life at 2 ms": 0.6,
}


class Load:
    """The calls of one contender."""

    def __init__(self, store: Store) -> None:
        self.store = Calls(store)
        self._one = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=INPUT)])
        self._claimed: deque[Attempt] = deque()
        self._blocks: list[AddSpansRequest] = []
        self._requests: dict[int, Iterator[AddSpansRequest]] = {}

    async def fill(self, count: int) -> None:
        """Fill the queue."""
        for start in range(0, count, FILLED_AT_ONCE):
            few = min(FILLED_AT_ONCE, count - start)
            specs = [RolloutSpec(input_json=INPUT)] * few
            await self.store.enqueue_rollouts(EnqueueRolloutsRequest(rollouts=specs))

    async def claim_many(self, count: int) -> None:
        """Claim for later reports."""
        while len(self._claimed) < count:
            answer = await self.store.dequeue_rollouts(DequeueRolloutsRequest(limit=1000))
            self._claimed += [rollout.latest_attempt for rollout in answer.rollouts]

    async def enqueue(self, _caller: int) -> int:
        await self.store.enqueue_rollouts(self._one)
        return 1

    async def claim(self, _caller: int) -> int:
        await self.store.dequeue_rollouts(DequeueRolloutsRequest(limit=1))
        return 1

    async def update(self, _caller: int) -> int:
        await self._report(self._claimed.popleft())
        return 1

    async def life(self, _caller: int) -> int:
        await self.store.enqueue_rollouts(self._one)
        answer = await self.store.dequeue_rollouts(DequeueRolloutsRequest(limit=1))
        await self._report(answer.rollouts[0].latest_attempt)
        return 1

    async def _report(self, attempt: Attempt) -> None:
        ended = Attempt(
            rollout_id=attempt.rollout_id,
            attempt_id=attempt.attempt_id,
            status=ATTEMPT_STATUS_SUCCEEDED,
        )
        await self.store.update_attempt(UpdateAttemptRequest(attempt=ended))

    async def spans(self, caller: int) -> int:
        if not self._blocks:
            self._blocks = [
                AddSpansRequest(
                    batch=SpanBatch(
                        scope=SCOPE,
                        spans=block(SPANS, seed),
                        resource=resource(),
                        attempt_id="latest",
                    )
                )
                for seed in range(BLOCKS)
            ]
        request = next(self._requests.setdefault(caller, iter(())), None)
        if request is None:
            started = await self.store.start_rollout(
                StartRolloutRequest(rollout=RolloutSpec(input_json=INPUT))
            )
            self._requests[caller] = self._of(started.rollout.rollout_id)
            request = next(self._requests[caller])
        await self.store.add_spans(request)
        return SPANS

    def _of(self, rollout_id: str) -> Iterator[AddSpansRequest]:
        for each in self._blocks:
            each.batch.rollout_id = rollout_id
            yield each


async def measure(url: str, path: Path, seconds: float) -> dict[str, Any]:
    """Return calls and spans per second by contender, and the ratios with their goals."""
    opened = {
        "file": await open_store(Config(db=path / "store.db")),
        "database": await open_store(Config(database_url=url)),
    }
    loads = {name: Load(store) for name, store in opened.items()}
    admin = await asyncpg.connect(url)
    speeds: dict[str, dict[str, float]] = {}
    try:
        for name in ("enqueue", "claim", "update", "life", "spans"):
            speeds[name] = await _speeds(loads, admin, name, seconds)
    finally:
        await admin.close()
        for store in opened.values():
            await store.close()
    ratios = {name: each["database"] / each["file"] for name, each in speeds.items()}
    ratios["life at 2 ms"] = speeds["life"]["2 ms"] / speeds["life"]["database"]
    return {
        "per second": {n: {k: round(v) for k, v in each.items()} for n, each in speeds.items()},
        "ratios": {
            name: {"ratio": round(ratio, 2), "goal": GOALS.get(name)}
            for name, ratio in ratios.items()
        },
    }


async def _speeds(
    loads: dict[str, Load], admin: asyncpg.Connection, name: str, seconds: float
) -> dict[str, float]:
    """Return items per second of one call, by contender."""
    callers = SPAN_CALLERS if name == "spans" else CALLERS
    done = dict.fromkeys(("file", "database", "2 ms"), 0.0)
    for load in loads.values():
        if name == "claim":
            await load.fill(int(20_000 * (2 * seconds + 1)))
        if name == "update":
            await load.claim_many(int(12_000 * (2 * seconds + 1)))
        await drive(_op(load, name), callers, 0.3)
    tuning.settle_garbage()
    count = max(2, round(seconds / SLICE))
    for _ in range(count):
        for contender in done:
            if contender == "2 ms":
                await _delay(admin, 2000)
            op = _op(loads["file" if contender == "file" else "database"], name)
            found = await drive(op, callers, seconds / count)
            done[contender] += found["items"] / found["seconds"] / count
            if contender == "2 ms":
                await _delay(admin, 0)
    return done


def _op(load: Load, name: str) -> Callable[[int], Awaitable[int]]:
    op: Callable[[int], Awaitable[int]] = getattr(load, name)
    return op


async def _delay(admin: asyncpg.Connection, microseconds: int) -> None:
    """Set the delay of commits; every connection notices before its next statement."""
    await admin.execute(f"ALTER SYSTEM SET commit_delay = {microseconds}")
    await admin.execute("SELECT pg_reload_conf()")
    await asyncio.sleep(0.2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=5, help="for each call and contender")
    parser.add_argument(
        "--folder", type=Path, help="place of the data file (default: a temporary one)"
    )
    chosen = parser.parse_args()
    with (
        running(commit_siblings="0") as server,
        tempfile.TemporaryDirectory(dir=chosen.folder) as place,
    ):

        async def _print() -> None:
            found = await measure(server.url, Path(place), chosen.seconds)
            print(json.dumps(found, indent=2))

        tuning.keep_freed_memory()
        tuning.run(_print())


if __name__ == "__main__":
    main()
