"""Calls of consumers beside many finished rollouts: `python -m benchmarks.consumers`.

Prints the milliseconds of CPU of a pull and an acknowledgement of 100 rollouts, of a claim from 100 queues, of a watch that reads
100 completed groups, and of the completion of a group until a watch yields it: in a store of many finished rollouts with a consumer
that has 10,000 outstanding, and in an empty store, and how they compare.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from lightningstore.client import AsyncLightningStore, open_store

from benchmarks.series import fill

OUTSTANDING, BATCH, QUEUES, ROUNDS = 10_000, 100, 100, 30
#: Finished rollouts that an empty store has, to pull them.
FEW = BATCH * (ROUNDS + 2)
NAMES = [f"q{n}" for n in range(QUEUES)]


async def timed(work: Callable[[], Awaitable[object]], rounds: int = ROUNDS) -> float:
    """Return the median milliseconds of CPU of some work: a busy machine does not change them much."""
    found = []
    for _ in range(rounds):
        start = time.process_time()
        await work()
        found.append(1000 * (time.process_time() - start))
    return statistics.median(found)


async def measured(store: AsyncLightningStore, outstanding: int) -> dict[str, float]:
    """Return the milliseconds of each kind of call."""
    start = time.process_time()
    await store.create_consumer("trainer", after_completion_number=0, ack_deadline=3600)
    created = 1000 * (time.process_time() - start)
    for _ in range(0, outstanding, 1000):
        await store.pull_finished("trainer", 1000)
    pulled = []

    async def pull() -> None:
        pulled.append(await store.pull_finished("trainer", BATCH))

    async def acknowledge() -> None:
        await store.acknowledge("trainer", pulled.pop())

    async def claim() -> None:
        assert len(await store.dequeue_rollouts(1, queues=NAMES)) == 1

    found = {"create": created, "pull": await timed(pull), "acknowledge": await timed(acknowledge)}
    for name in NAMES:
        await store.enqueue_rollouts([{"input": n} | {"queue": name} for n in range(3)])
    found["claim"] = await timed(claim)
    found |= await watches(store)
    await store.create_consumer(
        "full", queues=["held"], max_outstanding=1, after_completion_number=0
    )
    for _ in range(10):
        await store.enqueue_rollouts([{"input": n, "queue": "held"} for n in range(2_000)])
    NAMES.append("held")
    assert await store.dequeue_rollouts(1, queues=["held"])
    found["claim beside 20,000 held back"] = await timed(claim)
    NAMES.pop()
    return found


async def watches(store: AsyncLightningStore) -> dict[str, float]:
    """Return the milliseconds that watches of groups take."""
    names = [f"g{n}" for n in range(BATCH + ROUNDS)]
    made = await store.enqueue_rollouts(
        [{"input": 1, "group_id": name} for name in names],
        groups=[{"group_id": name, "size": 1} for name in names],
    )
    ids = [rollout.rollout_id for rollout in made]
    await store.cancel_rollouts(ids[:BATCH])

    async def read() -> None:
        async with store.watch_groups(0) as completions:
            for _ in range(BATCH):
                await anext(completions)

    found = {f"watch, {BATCH} past groups": await timed(read)}
    left = iter(ids[BATCH:])
    async with store.watch_groups(0) as completions:
        for _ in range(BATCH):
            await anext(completions)

        async def complete() -> None:
            await store.cancel_rollouts([next(left)])
            await anext(completions)

        found["watch, completion of a group"] = await timed(complete)
    return found


async def compare(kind: str, count: int, folder: Path) -> None:
    """Print the figures of one back end."""
    found = []
    for number, outstanding in ((FEW, 0), (count, OUTSTANDING)):
        if kind == "memory":
            async with open_store("memory://") as store:
                for _ in range(0, number, 1000):
                    specs = [{"input": n} for n in range(1000)]
                    made = await store.enqueue_rollouts(specs)
                    await store.cancel_rollouts([each.rollout_id for each in made])
                for _ in range(number // 100):
                    await store.heartbeat("w")  # each call evicts some of the cached rollouts
                found.append(await measured(store, outstanding))
        else:
            url = f"sqlite:///{folder}/{number}.db"
            await fill(url, number)
            async with open_store(url) as store:
                found.append(await measured(store, outstanding))
    few, many = found
    for call, milliseconds in many.items():
        ratio = milliseconds / few[call]
        print(f"{kind:6}  {call:30}  {few[call]:8.2f} ms  {milliseconds:8.2f} ms  {ratio:6.2f}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="finished rollouts")
    parser.add_argument("--backend", choices=["memory", "sqlite"], action="append")
    options = parser.parse_args()
    print(f"{'':6}  {'call':30}  {'empty':>11}  {options.count:>11,}  {'ratio':>6}")
    with tempfile.TemporaryDirectory() as folder:
        for kind in options.backend or ["memory", "sqlite"]:
            asyncio.run(compare(kind, options.count, Path(folder)))


if __name__ == "__main__":
    main()
