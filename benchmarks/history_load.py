"""Calls every method of a store with history, with one caller, call after call.

The same calls go to a store with a million finished and 10,000 running rollouts, and to a store
with almost none (a few thousand, so that both read from disk). Each finished rollout is read once,
in random order, so that neither the server's cache nor the page cache helps more than it does with
a file of that size.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

from lightningstore.v1 import attempt_pb2, claim_pb2, completion_pb2, rollout_pb2, span_pb2
from lightningstore.v1.statistics_pb2 import GetStatisticsRequest
from lightningstore.v1.worker_pb2 import HeartbeatRequest

from benchmarks import workloads
from benchmarks.grpc_client import INPUT, PATH, Claim, Client
from benchmarks.history import SPANS_EVERY, attempt_id, rollout_id
from benchmarks.loop import WARM_UP, Exhausted, Op, Stage, summary

Requests = Iterator[tuple[str, Any]]


class Store:
    """A store with a past, and what is left to ask of it."""

    def __init__(self, client: Client, job: dict[str, Any], most: int) -> None:
        finished, running = job["finished"], job["running"]
        self._client = client
        self.running = [
            attempt_pb2.AttemptRef(rollout_id=rollout_id(n), attempt_id=attempt_id(n))
            for n in range(finished, finished + running)
        ]
        # Each repetition has its own share of the finished ones, so that none is read twice.
        order = random.Random(5).sample(range(finished), finished)
        share = finished // job["repetitions"]
        self.finished = iter(order[job["repetition"] * share :][:share])
        self.with_spans = itertools.cycle(
            random.Random(6).sample(range(0, finished, SPANS_EVERY), min(finished // 10, most))
        )

    def old(self) -> str:
        """Return the id of a finished rollout that was not asked for before. Raises Exhausted."""
        number = next(self.finished, None)
        if number is None:
            raise Exhausted
        return rollout_id(number)

    def call(self, method: str, make: Callable[[], Any]) -> Op:
        """Return the operation of a unary call."""

        async def op(caller: int) -> int:
            await self._client.call(caller, method, make().SerializeToString())
            return 1

        return op

    def stream(self, method: str, make: Callable[[], Any]) -> Op:
        """Return the operation of a call that answers with a stream."""

        async def op(caller: int) -> int:
            call = self._client.channel(caller).unary_stream(PATH + method)
            async for _ in call(make().SerializeToString()):
                pass
            return 1

        return op


def _reads(store: Store) -> dict[str, Op]:
    page = rollout_pb2.ListRolloutsRequest
    running = itertools.cycle(store.running)
    succeeded, live = rollout_pb2.ROLLOUT_STATUS_SUCCEEDED, rollout_pb2.ROLLOUT_STATUS_RUNNING
    call, stream = store.call, store.stream
    get, wait = rollout_pb2.GetRolloutRequest, completion_pb2.WaitForRolloutsRequest
    return {
        "GetRollout, running": call("GetRollout", lambda: get(rollout_id=next(running).rollout_id)),
        "GetRollout, finished": call("GetRollout", lambda: get(rollout_id=store.old())),
        "ListAttempts, finished": call(
            "ListAttempts", lambda: attempt_pb2.ListAttemptsRequest(rollout_id=store.old())
        ),
        "ListRollouts, succeeded": call("ListRollouts", lambda: page(statuses=[succeeded])),
        "ListRollouts, running": call("ListRollouts", lambda: page(statuses=[live])),
        "ListRollouts, newest": call("ListRollouts", lambda: page(order_by="start_time desc")),
        "GetStatistics": call("GetStatistics", GetStatisticsRequest),
        "QuerySpans, finished": stream(
            "QuerySpans",
            lambda: span_pb2.QuerySpansRequest(rollout_id=rollout_id(next(store.with_spans))),
        ),
        "WaitForRollouts, finished": stream(
            "WaitForRollouts", lambda: wait(rollout_ids=[store.old()])
        ),
    }


def _writes(store: Store, claims: Iterator[Claim], queued: Iterator[str]) -> dict[str, Op]:
    spec = rollout_pb2.RolloutSpec(input_json=INPUT)
    running = itertools.cycle(store.running)
    call = store.call

    def outcome() -> Any:
        claim = next(claims, None)
        if claim is None:
            raise Exhausted
        attempt = attempt_pb2.Attempt(
            rollout_id=claim[0], attempt_id=claim[1], status=attempt_pb2.ATTEMPT_STATUS_SUCCEEDED
        )
        return attempt_pb2.UpdateAttemptRequest(attempt=attempt)

    def cancelled() -> Any:
        queued_id = next(queued, None)
        if queued_id is None:
            raise Exhausted
        return rollout_pb2.CancelRolloutsRequest(rollout_ids=[queued_id])

    return {
        "EnqueueRollouts": call(
            "EnqueueRollouts", lambda: rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
        ),
        "DequeueRollouts": call(
            "DequeueRollouts", lambda: claim_pb2.DequeueRolloutsRequest(limit=1)
        ),
        "UpdateAttempt": call("UpdateAttempt", outcome),
        "StartRollout": call("StartRollout", lambda: claim_pb2.StartRolloutRequest(rollout=spec)),
        "StartAttempt, finished": call(
            "StartAttempt", lambda: claim_pb2.StartAttemptRequest(rollout_id=store.old())
        ),
        "CancelRollouts": call("CancelRollouts", cancelled),
        "Heartbeat": call(
            "Heartbeat", lambda: HeartbeatRequest(worker_id="w-1", attempts=[next(running)])
        ),
    }


async def _operations(client: Client, job: dict[str, Any], most: int) -> dict[str, Op]:
    """Return the calls for one store, with their preparation."""
    store = Store(client, job, most)
    await workloads.fill(client, 4 * most)
    claims = iter(await workloads.claim_many(client, most))
    fresh = iter(await workloads.claim_many(client, most))
    queued = iter([i for _ in range(4) for i in client.ids(await client.enqueue(0, 500))])
    (block,) = client.blocks(1, 10)

    async def add(caller: int) -> int:
        claim = next(fresh, None)
        if claim is None:
            raise Exhausted
        await client.add(caller, claim, block)
        return 1

    return {**_reads(store), **_writes(store, claims, queued), "AddSpans": add}


async def run(client: Client, job: dict[str, Any], stage: Stage) -> None:
    """Ask both stores in turn, call by call, so that whatever else the machine does hits both alike."""
    other = Client(job["other"]["address"], 1)
    await other.open()
    seconds = 2 * job["seconds"]
    most = int(1500 * (seconds + WARM_UP))
    past = await _operations(client, job, most)
    small = await _operations(other, {**job, **job["other"]}, most)
    for name, op in past.items():
        await _in_turn(op, small[name], WARM_UP)
        found = await _in_turn(op, small[name], seconds)
        stage.fact(name, past=summary(found[0]), small=summary(found[1]))
    await other.close()


async def _in_turn(one: Op, two: Op, seconds: float) -> tuple[list[float], list[float]]:
    """Return the latencies in seconds of two operations that take turns."""
    found: tuple[list[float], list[float]] = ([], [])
    until = perf_counter() + seconds
    try:
        while perf_counter() < until:
            for op, latencies in zip((one, two), found, strict=True):
                before = perf_counter()
                await op(0)
                latencies.append(perf_counter() - before)
    except Exhausted:
        pass
    return found
