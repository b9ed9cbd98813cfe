"""GetSeries over many finished rollouts on each back end: `python -m benchmarks.series`.

Prints the milliseconds of a call for each measure and axis, those of this process's processor, and for how long the call
held the event loop at most. PostgreSQL is a server that this starts.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.operations.store import open_store
from lightningstore.service.rules import measures
from lightningstore.service.rules.rows import AttemptRow, RolloutRow
from lightningstore.service.server.config import Config
from lightningstore.service.storage.back_ends import storage_at
from lightningstore.service.storage.base import Changes, Counters, Storage
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, REWARD_SOURCE_REPORTED, Attempt
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_SUCCEEDED, Rollout
from lightningstore.v1.series_pb2 import GetSeriesRequest

from benchmarks.console import FilledMemory
from tests.calls import Calls
from tests.postgres import running

BACKENDS = ("memory", "sqlite", "postgresql")

START_NS = 1_790_000_000_000_000_000
AT_ONCE = 5000
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("reward", "completion_time", {}),
    ("reward", "completion_number", {}),
    ("duration", "completion_time", {}),
    ("duration", "completion_number", {}),
    (
        "reward",
        "completion_time",
        {"statuses": [ROLLOUT_STATUS_SUCCEEDED], "min_reward": 0.5},
    ),
    ("score", "completion_time", {"score_name": "style"}),
    ("reward", "completion_time", {"rollout_id_contains": "99"}),
]


def history(count: int) -> Iterator[Changes]:
    """Yield commits with finished rollouts."""
    dice = random.Random(1)
    end_ns = START_NS
    for start in range(1, count + 1, AT_ONCE):
        changes = Changes(size=1 << 20)
        for key in range(start, min(start + AT_ONCE, count + 1)):
            end_ns += dice.randrange(10_000_000)
            record = Rollout(
                rollout_id=f"ro-{key:012x}",
                status=ROLLOUT_STATUS_SUCCEEDED,
                mode=dice.choice((1, 2)),
                attempt_count=1,
                latest_attempt_id="at-00000001",
                completion_number=key,
            )
            attempt = Attempt(
                rollout_id=record.rollout_id,
                attempt_id="at-00000001",
                sequence_number=1,
                status=ATTEMPT_STATUS_SUCCEEDED,
                reward=dice.random(),
                reward_source=REWARD_SOURCE_REPORTED,
                scores={"style": dice.random(), "length": dice.random()},
            )
            record.start_time.FromNanoseconds(end_ns - 20_000_000_000)
            attempt.start_time.FromNanoseconds(end_ns - dice.randrange(20_000_000_000))
            for message in (record, attempt):
                message.end_time.FromNanoseconds(end_ns)
            found = measures.of(record, attempt, attempt)
            changes.rollouts[key] = RolloutRow(key, record, 0, 0, found)
            changes.attempts[key] = AttemptRow(key, key, attempt, 0)
            changes.inputs.append((key, b'{"question": 1}'))
        last = start + AT_ONCE - 1
        changes.counters = Counters(
            rollout_key=last,
            attempt_key=last,
            completion_number=count,
            rollouts={ROLLOUT_STATUS_SUCCEEDED: last},
            attempts={ATTEMPT_STATUS_SUCCEEDED: last},
        )
        yield changes


async def fill(url: str, count: int) -> None:
    """Store finished rollouts."""
    storage = storage_at(url, full_sync=False)
    await storage.open()
    for changes in history(count):
        await storage.commit(changes)
    await storage.close()


async def longest_hold(ended: asyncio.Event) -> float:
    """Return for how many milliseconds the event loop was held at most until the event is set."""
    longest = 0.0
    while not ended.is_set():
        before = time.perf_counter()
        await asyncio.sleep(0)
        longest = max(longest, time.perf_counter() - before)
    return longest * 1000


async def measure(storage: Storage, repetitions: int) -> None:
    """Print a row for each case."""
    print("| measure | axis | options | ms | processor, ms | loop held, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    config = Config(backend="memory")
    store = await open_store(storage, SystemClock(), config.limits(), config.retention())
    calls = Calls(store)
    for measure, axis, options in CASES:
        request = GetSeriesRequest(
            measure=f"SERIES_MEASURE_{measure.upper()}",
            axis=f"SERIES_AXIS_{axis.upper()}",
            bucket_count=500,
            **options,
        )
        times, used = [], []
        for _ in range(repetitions):
            begun, cpu = time.perf_counter(), time.process_time()
            await calls.get_series(request)
            times.append((time.perf_counter() - begun) * 1000)
            used.append((time.process_time() - cpu) * 1000)
        ended = asyncio.Event()
        watch = asyncio.create_task(longest_hold(ended))
        await calls.get_series(request)
        ended.set()
        row = [statistics.median(times), statistics.median(used), await watch]
        figures = " | ".join(f"{figure:.0f}" for figure in row)
        print(f"| {measure} | {axis} | {options or ''} | {figures} |", flush=True)
    await store.close()


def main() -> None:
    """Fill stores and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.series", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--reps", type=int, default=5, help="calls of each case (default: 5)")
    parser.add_argument("--backend", choices=BACKENDS, help="default: each of them")
    options = parser.parse_args()
    for backend in (options.backend,) if options.backend else BACKENDS:
        print(f"\n{backend}, {options.rollouts} finished rollouts\n")
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="series-"))
            storage: Storage = FilledMemory(history(options.rollouts))
            if backend != "memory":
                url = f"sqlite:///{folder}/series.db"
                if backend == "postgresql":
                    url = stack.enter_context(running()).url
                asyncio.run(fill(url, options.rollouts))
                storage = storage_at(url)
            asyncio.run(measure(storage, options.reps))


if __name__ == "__main__":
    main()
