"""GetSeries over a data file of many finished rollouts: `python -m benchmarks.series`.

Prints the milliseconds of a call for each measure and axis, and for how long the call held the event loop at most.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from lightningstore.client import open_store
from lightningstore.service.rules import measures
from lightningstore.service.rules.rows import AttemptRow, RolloutRow
from lightningstore.service.storage.base import Changes, Counters
from lightningstore.service.storage.sqlite.store import SqliteStorage
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, REWARD_SOURCE_REPORTED, Attempt
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_SUCCEEDED, Rollout

START_NS = 1_790_000_000_000_000_000
AT_ONCE = 5000
CASES = [
    ("reward", "completion_time", {}),
    ("reward", "completion_number", {}),
    ("duration", "completion_time", {}),
    ("duration", "completion_number", {}),
    ("reward", "completion_time", {"statuses": ["succeeded"], "min_reward": 0.5}),
    ("score", "completion_time", {"score_name": "style"}),
    ("reward", "completion_time", {"rollout_id_contains": "99"}),
]


async def fill(path: Path, count: int) -> None:
    """Write a file of finished rollouts."""
    storage = SqliteStorage(path, full_sync=False)
    await storage.open()
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


async def measure(path: Path, repetitions: int) -> None:
    """Print a row for each case."""
    print("| measure | axis | options | ms, median | ms, lowest | loop held, ms |")
    print("| --- | --- | --- | --- | --- | --- |")
    async with open_store(f"sqlite:///{path}") as store:
        for name, axis, options in CASES:
            times = []
            for _ in range(repetitions):
                begun = time.perf_counter()
                await store.get_series(name, axis=axis, bucket_count=500, **options)
                times.append((time.perf_counter() - begun) * 1000)
            ended = asyncio.Event()
            watch = asyncio.create_task(longest_hold(ended))
            await store.get_series(name, axis=axis, bucket_count=500, **options)
            ended.set()
            held = await watch
            median, lowest = statistics.median(times), min(times)
            print(
                f"| {name} | {axis} | {options or ''} | {median:.0f} | {lowest:.0f} | {held:.0f} |"
            )


def main() -> None:
    """Fill a file and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.series", description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000, help="default: 1,000,000")
    parser.add_argument("--reps", type=int, default=5, help="calls of each case (default: 5)")
    parser.add_argument("--db", type=Path, help="file to keep, filled if it is missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = options.db or Path(folder) / "series.db"
        if not path.exists():
            asyncio.run(fill(path, options.rollouts))
        asyncio.run(measure(path, options.reps))


if __name__ == "__main__":
    main()
