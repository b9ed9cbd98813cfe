"""One load on a store of agentlightning: `python -m benchmarks.agl_load peer|ours ADDRESS WORKLOAD
SIZES`.

The workloads are those of agentlightning's own tests/benchmark, described in
`docs/agentlightning.md`. They use only agentlightning's interface; only `_open` depends on the
store. Prints one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import resource
import string
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import agentlightning as agl
from agentlightning.types import OtelResource, Span, SpanContext, TraceStatus
from agentlightning.utils.otel import get_tracer
from agentlightning.utils.system_snapshot import system_snapshot
from lightningstore.integrations.agentlightning import GrpcLightningStore

#: Seconds between two looks of the algorithm at its batch.
LOOK_SECONDS = 5.0
FINISHED = ("succeeded", "failed", "cancelled")

Sizes = dict[str, Any]


def _open(kind: str, address: str) -> agl.LightningStore:
    if kind == "peer":
        return agl.LightningStoreClient(f"http://{address}")
    return GrpcLightningStore(address)


def _text(shortest: int, longest: int) -> str:
    return "".join(random.choices(string.ascii_letters, k=random.randint(shortest, longest)))


def _attributes() -> dict[str, str]:
    """Return a tree of texts, 1 to 3 levels of 2 to 6 keys, as dotted keys."""
    found: dict[str, str] = {}

    def grow(prefix: str, levels: int) -> None:
        for _ in range(random.randint(2, 6)):
            key = prefix + _text(3, 20)
            if levels > 1:
                grow(f"{key}.", levels - 1)
            else:
                found[key] = _text(5, 300)

    grow("", random.randint(1, 3))
    return found


# The scenario: a Trainer with its runners, and an algorithm that hands out batches.


def _agent(rounds: int, sleep: float) -> Any:
    async def work(name: str, task: str | None = None) -> None:
        with get_tracer().start_as_current_span(name) as span:
            await asyncio.sleep(random.uniform(0.0, sleep))
            span.set_attributes(_attributes())
            if task is not None:
                span.set_attribute("task", task)

    @agl.rollout
    async def agent(task: str, llm: agl.LLM) -> None:
        count = random.randint(1, rounds)
        marked = random.randrange(count)
        for number in range(count):
            with get_tracer().start_as_current_span(f"agent{number}"):
                await work(f"round{number}_1", task if number == marked else None)
                await work(f"round{number}_2")
            if random.random() < 0.5:
                agl.emit_reward(random.uniform(0.0, 1.0))
        await work("final")
        agl.emit_reward(random.uniform(1.0, 2.0))

    return agent


class Batches(agl.Algorithm):
    """Enqueues batches one by one, looks every 5 seconds what has finished, and checks its spans."""

    def __init__(self, total: int, batch: int) -> None:
        super().__init__()
        self._total, self._batch = total, batch
        #: When the first rollout was enqueued and the last one ended, by the store's clock.
        self.first, self.last = float("inf"), 0.0
        self.spans = 0

    async def run(self, train_dataset: Any = None, val_dataset: Any = None) -> None:
        store = self.get_store()
        submitted = 0
        while submitted < self._total:
            llm = agl.LLM(endpoint=f"http://localhost:{submitted}/v1", model=f"model-{submitted}")
            await store.add_resources({"llm": llm})
            tasks: dict[str, str] = {}
            for _ in range(min(self._batch, self._total - submitted)):
                task = f"task-{submitted}"
                queued = await store.enqueue_rollout(input=task, mode="train")
                self.first = min(self.first, queued.start_time)
                tasks[queued.rollout_id] = task
                submitted += 1
            await self._finish(store, tasks)

    async def _finish(self, store: agl.LightningStore, tasks: dict[str, str]) -> None:
        ids, done = list(tasks), set[str]()
        while len(done) < len(ids):
            for rollout in await store.wait_for_rollouts(rollout_ids=ids, timeout=0.0):
                if rollout.rollout_id in done:
                    continue
                if rollout.status != "succeeded" or rollout.end_time is None:
                    raise RuntimeError(f"{rollout.rollout_id} is {rollout.status}")
                self.last = max(self.last, rollout.end_time)
                spans = await store.query_spans(rollout.rollout_id, "latest")
                self._check(list(spans), tasks[rollout.rollout_id])
                done.add(rollout.rollout_id)
            await asyncio.sleep(LOOK_SECONDS)

    def _check(self, spans: list[Span], task: str) -> None:
        self.spans += len(spans)
        reward = agl.find_final_reward(spans)
        if reward is None or not 1 <= reward <= 2:
            raise RuntimeError(f"{task}: the final reward is {reward}")
        if not any(span.attributes.get("task") == task for span in spans):
            raise RuntimeError(f"{task}: no span has its name")


def _scenario(kind: str, address: str, sizes: Sizes) -> tuple[int, float]:
    algorithm = Batches(sizes["total"], sizes["batch"])
    trainer = agl.Trainer(
        store=_open(kind, address),
        algorithm=algorithm,
        n_runners=sizes["runners"],
        strategy={"type": "cs", "managed_store": False},
    )
    trainer.fit(_agent(sizes["rounds"], sizes["sleep"]))
    return sizes["total"], algorithm.last - algorithm.first


# The micro benchmarks: a pool of processes, and a new client for each job.


def _spans(ids: tuple[str, str], numbers: Sequence[int], attributes: int) -> list[Span]:
    return [
        Span(
            rollout_id=ids[0],
            attempt_id=ids[1],
            sequence_id=number,
            trace_id=f"{number:032x}",
            span_id=f"{number:016x}",
            parent_id=None,
            name=f"micro-span-{number}",
            status=TraceStatus(status_code="OK"),
            attributes={_text(3, 20): _text(5, 300) for _ in range(attributes)},
            events=[],
            links=[],
            start_time=None,
            end_time=None,
            context=SpanContext(
                trace_id=f"{number:032x}", span_id=f"{number:016x}", is_remote=False, trace_state={}
            ),
            parent=None,
            resource=OtelResource(attributes={}, schema_url=""),
        )
        for number in numbers
    ]


async def _worker(store: agl.LightningStore, worker: str, _: int) -> bool:
    await store.update_worker(worker, system_snapshot())
    return True


async def _dequeue_empty(store: agl.LightningStore, worker: str, _: int) -> bool:
    await store.dequeue_rollout(worker_id=worker)
    await store.update_worker(worker, system_snapshot())
    return True


async def _rollout(store: agl.LightningStore, _: str, job: int) -> bool:
    started = await store.start_rollout(input={"task": job})
    ids = started.rollout_id, started.attempt.attempt_id
    for span in _spans(ids, range(4 * job + 1, 4 * job + 5), attributes=1):
        await store.add_span(span)
    await store.update_attempt(*ids, status="succeeded")
    return True


async def _dequeue_only(store: agl.LightningStore, _worker: str, _: int) -> bool:
    return await store.dequeue_rollout() is not None


async def _dequeue_update(store: agl.LightningStore, worker: str, _: int) -> bool:
    claimed = await store.dequeue_rollout(worker_id=worker)
    if claimed is None:
        return False
    ids = claimed.rollout_id, claimed.attempt.attempt_id
    numbers = await store.get_many_span_sequence_ids([ids] * 4)
    stored = await store.add_many_spans(_spans(ids, numbers, attributes=32))
    await store.update_attempt(*ids, status="succeeded")
    return len(stored) == 4


Job = Callable[[agl.LightningStore, str, int], Awaitable[bool]]
#: The jobs, and whether they want rollouts in the queue.
MICRO: dict[str, tuple[Job, bool]] = {
    "worker": (_worker, False),
    "dequeue-empty": (_dequeue_empty, False),
    "rollout": (_rollout, False),
    "dequeue-only": (_dequeue_only, True),
    "dequeue-update-attempt": (_dequeue_update, True),
}


def _work(job: tuple[str, str, str, int, int]) -> bool:
    kind, address, name, number, workers = job
    store = _open(kind, address)
    try:
        return asyncio.run(MICRO[name][0](store, f"Worker-{number % workers}", number))
    finally:
        asyncio.run(store.close())


async def _fill(store: agl.LightningStore, count: int) -> None:
    requests = [agl.EnqueueRolloutRequest(input={"task": f"Task-{n}"}) for n in range(count)]
    await store.enqueue_many_rollouts(requests)
    await store.close()


def _micro(name: str, kind: str, address: str, sizes: Sizes) -> tuple[int, float]:
    count, processes = sizes["jobs"], sizes["processes"]
    if MICRO[name][1]:
        asyncio.run(_fill(_open(kind, address), count))
    jobs = [(kind, address, name, number, processes) for number in range(count)]
    started = time.perf_counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        done = sum(pool.map(_work, jobs))
        seconds = time.perf_counter() - started
        pool.close()
        pool.join()  # so that the CPU of the processes counts
    if done != count:
        raise RuntimeError(f"{count - done} of {count} jobs failed")
    return count, seconds


def main() -> None:
    """Run one load."""
    kind, address, workload, sizes = (*sys.argv[1:4], json.loads(sys.argv[4]))
    if workload in MICRO:
        count, seconds = _micro(workload, kind, address, sizes)
    else:
        count, seconds = _scenario(kind, address, sizes)
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    print(json.dumps({"count": count, "seconds": seconds, "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
