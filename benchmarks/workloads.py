"""The requests to every server. Each workload is the same code for all of them, with the client of
each.

Imports only the standard library, because it also runs in the peer's environment.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from time import perf_counter
from typing import Any

from benchmarks.loop import Exhausted, Stage, slices, summary

#: Blocks of spans that are serialised beforehand: an attempt gets each of them once.
BLOCKS = 20
#: Calls per second that preparations allow for; a faster server ends its loop early.
MOST_CALLS = 9000
PREPARE_AT_ONCE = 500
#: Seconds that a stream is open for.
STREAM_SLICE = 1.5

Job = dict[str, Any]


async def calls(client: Any, job: Job, stage: Stage) -> None:
    """Enqueue one, claim one from a filled queue, report one as succeeded: each in a closed loop.

    The queue is filled beforehand, and attempts are claimed beforehand, so that no loop runs dry. Inputs
    are small (57 bytes); large ones cost every contender the same copies.
    """
    callers, seconds = job["callers"], job["seconds"]
    answers: list[Any] = []
    outcomes: deque[Any] = deque()

    async def enqueue(caller: int) -> int:
        await client.enqueue(caller, 1)
        return 1

    async def claim(caller: int) -> int:
        answers.append(await client.claim(caller, 1))
        return 1

    async def finish(caller: int) -> int:
        if not outcomes:
            raise Exhausted
        await client.finish(caller, outcomes.popleft())
        return 1

    # As much as the loops can use, whatever the contender's speed: `job["most_calls"]` a second.
    spare = int(job.get("most_calls", MOST_CALLS) * (seconds + 0.3))
    await stage.loop("enqueue", enqueue, callers, seconds)
    await fill(client, 2 * spare)
    await stage.loop("claim", claim, callers, seconds)
    claimed = await claim_many(client, spare)
    outcomes.extend(client.outcome(c) for c in claimed)
    await stage.loop("update", finish, callers, seconds)


async def batches(client: Any, job: Job, stage: Stage) -> None:
    """Enqueue and claim 100 at a time. What is counted is rollouts."""
    callers, seconds, size = job["callers"], job["seconds"], 100

    async def enqueue(caller: int) -> int:
        await client.enqueue(caller, size)
        return size

    async def claim(caller: int) -> int:
        await client.claim(caller, size)
        return size

    await stage.loop("enqueue 100", enqueue, callers, seconds)
    await fill(client, int(job["most_rollouts"] * (seconds + 0.3)))
    await stage.loop("claim 100", claim, callers, seconds)


async def fill(client: Any, count: int) -> None:
    """Enqueue `count` rollouts."""
    while count > 0:
        await client.enqueue(0, min(count, PREPARE_AT_ONCE))
        count -= PREPARE_AT_ONCE


async def claim_many(client: Any, count: int) -> list[Any]:
    """Claim `count` rollouts in large batches, or all there are."""
    found: list[Any] = []
    while len(found) < count:
        try:
            answer = await client.claim(0, min(count - len(found), PREPARE_AT_ONCE))
        except Exhausted:
            break
        found += client.claims(answer)
    return found


async def fresh_claims(client: Any, count: int) -> list[Any]:
    """Enqueue and claim `count` rollouts."""
    await fill(client, count)
    return await claim_many(client, count)


async def ingest(client: Any, job: Job, stage: Stage) -> None:
    """Send span messages on 8 streams, each open for a second or more; the clock stops at the last answer.

    An attempt gets BLOCKS messages, then the stream goes on to the next. Counted is what was accepted; a
    duplicate or a refusal is an error of the benchmark.
    """
    streams, seconds, size = job["callers"], job["seconds"], job["size"]
    blocks = client.blocks(BLOCKS, size)
    claims = await fresh_claims(
        client, int(job["most_spans"] * (seconds + 0.7) / size / BLOCKS) + 1
    )
    left = deque(claims)

    def messages(until: float, sent: list[int]) -> Iterator[Any]:
        while left:
            claim = left.popleft()
            for block in blocks:
                if perf_counter() >= until:
                    return
                sent[0] += size
                yield client.message(claim, block)

    async def run(duration: float) -> dict[str, Any]:
        started, sent = perf_counter(), [0]
        until = started + duration
        counts = await asyncio.gather(
            *(client.ingest(i, messages(until, sent)) for i in range(streams))
        )
        if sum(counts) != sent[0]:
            raise RuntimeError(f"{sum(counts)} of {sent[0]} spans were accepted")
        return {"calls": sent[0] // size, "items": sent[0], "seconds": perf_counter() - started}

    await run(0.3)
    for length in slices(seconds, STREAM_SLICE):
        await stage.measure(f"ingest {size}", lambda length=length: run(length))


async def export(client: Any, job: Job, stage: Stage) -> None:
    """Send spans by OTLP: a call a block, 512 spans in each, as exporters do; 8 exporters."""
    callers, seconds, size = job["callers"], job["seconds"], job["size"]
    blocks = client.export_blocks(BLOCKS, size)
    claims = await fresh_claims(
        client, int(job["most_spans"] * (seconds + 0.7) / size / BLOCKS) + 1
    )
    work = ((claim, block) for claim in claims for block in blocks)

    async def op(caller: int) -> int:
        try:
            claim, block = next(work)
        except StopIteration:
            raise Exhausted from None
        await client.export(caller, claim, block)
        return size

    await stage.loop(f"export {size}", op, callers, seconds)


async def add_one(client: Any, job: Job, stage: Stage) -> None:
    """Store spans one a call, 16 callers: the path of the peer's own client."""
    (block,) = client.blocks(1, 1)
    claims = deque(await fresh_claims(client, int(job["most_calls"] * (job["seconds"] + 0.3))))

    async def op(caller: int) -> int:
        if not claims:
            raise Exhausted
        await client.add(caller, claims.popleft(), block)
        return 1

    await stage.loop("add 1", op, job["callers"], job["seconds"])


async def query(client: Any, job: Job, stage: Stage) -> None:
    """Read the 1,000 spans of a rollout, one caller, going round many rollouts of the same size.

    The answer is parsed: the clock stops when the caller holds messages (or the peer's objects).
    """
    rollouts, count = job["rollouts"], job["spans"]
    blocks = client.export_blocks(count // 100, 100)
    claims = await fresh_claims(client, rollouts)
    for claim in claims:
        for block in blocks:
            await client.export(0, claim, block)
    turn = iter(range(10**9))

    async def op(caller: int) -> int:
        found = await client.query(caller, claims[next(turn) % rollouts])
        if found != count:
            raise RuntimeError(f"{found} of {count} spans came back")
        return found

    await stage.loop(f"query {count}", op, 1, job["seconds"])


async def told(client: Any, job: Job, stage: Stage) -> None:
    """Time from the answer of UpdateAttempt to the notification of a waiter, in milliseconds, at least 0.

    All wait for the same rollout, each on a stream of its own in this one process, so the figure for many
    waiters holds this process's own time for as many messages.
    """
    delays: list[float] = []
    lasts: list[float] = []
    for _ in range(job["rounds"]):
        (claim,) = await fresh_claims(client, 1)
        waits = [await client.wait(i, claim[0]) for i in range(job["waiters"])]
        times: list[float] = []
        tasks = [asyncio.ensure_future(_note(wait, times)) for wait in waits]
        await asyncio.sleep(0.01 + job["waiters"] / 5000)
        await client.finish(0, client.outcome(claim))
        answered = perf_counter()
        await asyncio.gather(*tasks)
        round_delays = [1000 * max(0.0, moment - answered) for moment in times]
        delays += round_delays
        lasts.append(max(round_delays))
    lasts.sort()
    found = summary([delay / 1000 for delay in delays])
    stage.fact(f"told {job['waiters']}", last_ms=lasts[len(lasts) // 2], **found)


async def _note(wait: Any, times: list[float]) -> None:
    await wait
    times.append(perf_counter())


async def life(client: Any, job: Job, stage: Stage) -> None:
    """Rollouts from enqueue to finish, 16 callers: enqueue, wait, claim, 10 spans, finish, notification.

    Each caller waits on a stream of its own for the rollout that it enqueued, and works on whichever it
    claims. Nothing is batched across lives. Spans go in a call of their own.
    """
    (block,) = client.blocks(1, 10)

    async def op(caller: int) -> int:
        (rollout_id,) = client.ids(await client.enqueue(caller, 1))
        finished = await client.wait(caller, rollout_id)
        (claim,) = client.claims(await client.claim(caller, 1))
        await client.add(caller, claim, block)
        await client.finish(caller, client.outcome(claim))
        await finished
        return 1

    await stage.loop("life", op, job["callers"], job["seconds"])


async def streamed_life(client: Any, job: Job, stage: Stage) -> None:
    """The same over streams that stay open: one a caller for its spans, one for all that finishes."""
    (block,) = client.blocks(1, 10)
    streams = [client.stream(i) for i in range(job["callers"])]
    watch = await client.watch()

    async def op(caller: int) -> int:
        (rollout_id,) = client.ids(await client.enqueue(caller, 1))
        (claim,) = client.claims(await client.claim(caller, 1))
        await streams[caller].write(client.message(claim, block))
        await client.finish(caller, client.outcome(claim))
        await watch.finished(rollout_id)
        return 1

    await stage.loop("life by stream", op, job["callers"], job["seconds"])
    watch.close()
    for stream in streams:
        await stream.done_writing()
        await stream


async def retain(client: Any, job: Job, stage: Stage) -> None:
    """Store a given number of spans, no matter how fast: what they weigh is looked at from outside."""
    blocks = client.blocks(BLOCKS, 100)
    weight = sum(len(block) for block in blocks) / len(blocks) / 100
    claims = await fresh_claims(client, job["spans"] // 100 // BLOCKS)
    chunks = deque(claims)

    async def work() -> dict[str, Any]:
        sent, started = 0, perf_counter()
        while chunks:
            claim = chunks.popleft()
            sent += await client.ingest(0, [client.message(claim, block) for block in blocks])
        taken = perf_counter() - started
        await asyncio.sleep(0.5)
        return {"items": sent, "calls": sent // 100, "seconds": taken, "span_bytes": weight}

    await stage.measure("retain", work)


WORKLOADS = {
    work.__name__: work
    for work in (calls, batches, ingest, export, add_one, query, told, life, streamed_life, retain)
}
