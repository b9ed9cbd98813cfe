"""What the search for rewards costs the ingest path: `python -m benchmarks.reward_search`.

Adds batches of 100 spans to a store in memory, with and without the search, by turns. Prints CPU per span and their ratio.
"""

from __future__ import annotations

import asyncio
import statistics
import time

from lightningstore.client import open_store
from lightningstore.service.operations import ingest
from lightningstore.v1.span_pb2 import SpanBatch

from benchmarks.spans import Text, span

BATCHES, SPANS, TURNS = 40, 100, 9


async def add(batches: list[SpanBatch]) -> float:
    """Return the CPU seconds of storing the batches."""
    async with open_store("memory://") as store:
        rollout = await store.start_rollout(1)
        for batch in batches:
            batch.rollout_id, batch.attempt_id = rollout.rollout_id, rollout.latest_attempt_id
        begun = time.process_time()
        for batch in batches:
            await store.add_spans(batch)
        return time.process_time() - begun


async def measure() -> None:
    """Measure by turns and print."""
    text = Text(7)
    batches = [
        SpanBatch(spans=[span(text, n, b"t" * 16) for n in range(SPANS)]) for _ in range(BATCHES)
    ]
    search = ingest.last_reward
    with_search, without = [], []
    for _ in range(TURNS):
        ingest.last_reward = search
        with_search.append(await add(batches))
        ingest.last_reward = lambda _data, _numbers: None
        without.append(await add(batches))
    ingest.last_reward = search
    spans = BATCHES * SPANS / 1e6
    before, after = statistics.median(without) / spans, statistics.median(with_search) / spans
    print(f"µs a span: {before:.2f} without the search, {after:.2f} with it")
    print(
        f"ratio of the lowest: {min(with_search) / min(without):.3f}; of the medians: {after / before:.3f}"
    )


if __name__ == "__main__":
    asyncio.run(measure())
