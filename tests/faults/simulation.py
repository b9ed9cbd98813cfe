"""An engine under virtual time over a disk of dictionaries, in one thread: whatever it does follows from a seed.

Ids, jitter, turns on the loop and waits of commits come from a seed under `seeded`, time from a ManualClock, faults and
delays from the disk's generator.
Nothing else decides what happens, so that a seed replays a history to the bit.
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from google.protobuf.message import Message
from lightningstore.service.engine import committer
from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc.handlers import SERVICE
from lightningstore.service.rules import ids as server_ids
from lightningstore.service.rules.errors import StorageFailed
from lightningstore.service.rules.lifecycle import is_finished, is_live
from lightningstore.service.rules.rows import (
    ConsumerRow,
    DeliveryRow,
    LoadedRollout,
    RequestRow,
    ResourcesVersion,
)
from lightningstore.service.server.config import Config
from lightningstore.service.storage.base import Changes, Counters, Snapshot
from lightningstore.service.storage.memory import MemoryStorage
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    consumer_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
    worker_pb2,
)
from lightningstore.v1.worker_pb2 import Worker
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.clock import ManualClock

#: How often an operation over many items finds that its turn on the event loop is over.
OVER = 0.05
#: Passes of the event loop, at most, that a commit waits for more operations.
GATHERED = 5
ENDS = [3, 3, 4, 4, 2]  # succeeded, failed, running


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Derive ids, jitter, the ends of turns and the waits of commits from a seed: otherwise the operating system
    and the time decide.
    """
    ids, turns, waits = random.Random(seed), random.Random(seed), random.Random(seed)

    def over(turn: Turn) -> bool:
        return turns.random() < OVER

    async def until_idle(longest: float) -> None:
        for _ in range(waits.randint(0, GATHERED)):
            await asyncio.sleep(0)

    with (
        mock.patch.object(server_ids, "random_bytes", ids.randbytes),
        mock.patch.object(Turn, "over", over),
        mock.patch.object(committer, "until_idle", until_idle),
    ):
        server_ids.DICE.seed(seed)
        try:
            yield
        finally:
            server_ids.DICE.seed()


class SimulatedDisk(MemoryStorage):
    """Keeps what was committed through crashes. Of its commits and openings a share fails."""

    durability = statistics_pb2.DURABILITY_FULL

    def __init__(self, dice: random.Random, failing: float = 0.0) -> None:
        super().__init__()
        self.dice, self.failing = dice, failing
        self.faults = 0
        self._counters = Counters()
        self._workers: dict[str, Worker] = {}
        self._requests: list[RequestRow] = []
        self._consumers: dict[str, ConsumerRow] = {}
        self._deliveries: dict[tuple[int, int], DeliveryRow] = {}

    async def open(self) -> Snapshot:
        if self.dice.random() < self.failing:
            self.faults += 1
            raise StorageFailed("simulated: it does not open")
        self._is_open = True
        live = []
        for key, row in self._rollouts.items():
            attempts = list(self._attempts.get(key, {}).values())
            if not is_finished(row.rollout) or any(is_live(a.attempt) for a in attempts):
                live.append(LoadedRollout(row, b"", attempts, len(self._inputs[key])))
        return Snapshot(
            store_id="simulated",
            counters=copy.deepcopy(self._counters),
            live=live,
            workers=list(self._workers.values()),
            resources=[
                ResourcesVersion(row.record.resources_id, row.key, row.record.version, number)
                for number, row in self._resources.items()
            ],
            requests=list(self._requests),
            settings=self._settings,
            groups=[self._groups[key] for key in self._open_groups.each()],
            consumers=list(self._consumers.values()),
            deliveries=list(self._deliveries.values()),
        )

    async def close(self) -> None:
        """Keep everything: it is opened again."""
        self._is_open = False

    async def commit(self, changes: Changes) -> None:
        for _ in range(self.dice.choice([0, 1, 3, 10])):
            await asyncio.sleep(0)
        fate = self.dice.random()
        if fate < self.failing / 2:
            self.faults += 1
            raise StorageFailed("simulated: not written")
        await super().commit(changes)
        if changes.counters is not None:
            self._counters = changes.counters
        self._workers.update(changes.workers)
        self._keep_consumers(changes)
        self._requests = [
            r for r in self._requests if r.time_ns >= changes.forget_requests_before_ns
        ] + changes.requests
        if fate < self.failing:
            self.faults += 1
            raise StorageFailed("simulated: written, and told that it was not")

    def _keep_consumers(self, changes: Changes) -> None:
        removed = set(changes.removed_consumers)
        self._consumers = {n: row for n, row in self._consumers.items() if row.key not in removed}
        self._deliveries = {p: row for p, row in self._deliveries.items() if p[0] not in removed}
        for place in changes.removed_deliveries:
            self._deliveries.pop(place, None)
        self._consumers.update(changes.consumers)
        self._deliveries.update(changes.deliveries)


def store_over(storage: Any, clock: ManualClock) -> Store:
    """Return a store that is not open yet."""
    store = Store(Engine(storage, clock, Config(backend="sqlite").limits()))
    store.start(Config().retention())
    return store


async def crash(store: Store) -> None:
    """End a store as a kill does: no commit, no notification."""
    committing = store.engine.committer._task
    for task in (*store._tasks, committing):
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class Requests:
    """Makes random writes of every kind, each with a request id where the contract has one."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.rollouts: list[str] = []
        self.attempts: list[tuple[str, str]] = []
        self.deliveries: list[str] = []
        self.made = 0

    def next(self) -> tuple[str, Message]:
        """Return a method of the store and a request for it."""
        self.made += 1
        if self.made == 1:
            consumer = {"name": "trainer", "max_deliveries": 3}
            return "create_consumer", consumer_pb2.CreateConsumerRequest(consumer=consumer)
        makers = [self._enqueue, self._start, self._dequeue, self._dequeue, self._resources]
        if self.rollouts:
            makers += [self._start_attempt, self._update_rollout, self._cancel, self._pull]
        if self.deliveries:
            makers += [self._acknowledge]
        if self.attempts:
            makers += [self._report, self._report, self._spans, self._numbers, self._beat]
        method, request = self.dice.choice(makers)()
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            request.request_id = f"request-{self.made}"
        return method, request

    def learn(self, answer: Message) -> None:
        """Note the ids of an answer, to be used later."""
        found = list(getattr(answer, "rollouts", ()))
        if "rollout" in answer.DESCRIPTOR.fields_by_name:
            found.append(answer.rollout)
        for record in found:
            self.rollouts.append(record.rollout_id)
            if record.latest_attempt_id:
                self.attempts.append((record.rollout_id, record.latest_attempt_id))
        self.deliveries += [d.delivery_id for d in getattr(answer, "deliveries", ())]
        del self.rollouts[:-300], self.attempts[:-100], self.deliveries[:-30]

    def _spec(self) -> dict[str, Any]:
        config = {"max_attempts": self.dice.choice([1, 3]), "retry_condition": [4, 5, 6]}
        if self.dice.random() < 0.3:
            config["unresponsive_timeout"] = {"seconds": self.dice.choice([1, 20])}
        return {
            "input_json": b"[%d]" % self.dice.randrange(99),
            "priority": self.dice.randrange(3),
            "config": config,
        }

    def _enqueue(self) -> tuple[str, Message]:
        specs = [self._spec() for _ in range(self.dice.choice([1, 3]))]
        return "enqueue_rollouts", rollout_pb2.EnqueueRolloutsRequest(rollouts=specs)

    def _start(self) -> tuple[str, Message]:
        request = claim_pb2.StartRolloutRequest(rollout=self._spec(), worker_id="v")
        return "start_rollout", request

    def _dequeue(self) -> tuple[str, Message]:
        request = claim_pb2.DequeueRolloutsRequest(limit=self.dice.choice([1, 2]), worker_id="w")
        return "dequeue_rollouts", request

    def _start_attempt(self) -> tuple[str, Message]:
        request = claim_pb2.StartAttemptRequest(rollout_id=self.dice.choice(self.rollouts))
        return "start_attempt", request

    def _update_rollout(self) -> tuple[str, Message]:
        record = {
            "rollout_id": self.dice.choice(self.rollouts),
            "metadata_json": b'{"n": %d}' % self.made,
        }
        return "update_rollout", rollout_pb2.UpdateRolloutRequest(rollout=record)

    def _cancel(self) -> tuple[str, Message]:
        ids = [self.dice.choice(self.rollouts)]
        return "cancel_rollouts", rollout_pb2.CancelRolloutsRequest(rollout_ids=ids)

    def _pull(self) -> tuple[str, Message]:
        count = self.dice.choice([1, 3])
        request = consumer_pb2.PullFinishedRequest(consumer="trainer", max_items=count)
        return "pull_finished", request

    def _acknowledge(self) -> tuple[str, Message]:
        ids = [self.dice.choice(self.deliveries) for _ in range(self.dice.choice([1, 2]))]
        outcome = self.dice.choice([1, 1, 2, 3])
        request = consumer_pb2.AcknowledgeRequest(
            consumer="trainer", delivery_ids=ids, outcome=outcome
        )
        return "acknowledge", request

    def _names(self) -> dict[str, str]:
        rollout_id, attempt_id = self.dice.choice(self.attempts)
        return {"rollout_id": rollout_id, "attempt_id": attempt_id}

    def _report(self) -> tuple[str, Message]:
        record = {**self._names(), "status": self.dice.choice(ENDS)}
        return "update_attempt", attempt_pb2.UpdateAttemptRequest(attempt=record)

    def _spans(self) -> tuple[str, Message]:
        ids = [self.dice.randbytes(8) for _ in range(self.dice.choice([1, 4]))]
        spans = [Span(trace_id=b"t" * 16, span_id=i, name="s") for i in ids]
        batch = span_pb2.SpanBatch(**self._names(), spans=spans)
        return "add_spans", span_pb2.AddSpansRequest(batch=batch)

    def _numbers(self) -> tuple[str, Message]:
        demand = {**self._names(), "count": self.dice.choice([1, 5])}
        request = span_pb2.AllocateSequenceIdsRequest(demands=[demand])
        return "allocate_sequence_ids", request

    def _beat(self) -> tuple[str, Message]:
        request = worker_pb2.HeartbeatRequest(worker_id="w", attempts=[self._names()])
        return "heartbeat", request

    def _resources(self) -> tuple[str, Message]:
        made = {"r": resources_pb2.Resource(custom={"type": "t", "value_json": b"%d" % self.made})}
        if self.dice.random() < 0.5:
            return "add_resources", resources_pb2.AddResourcesRequest(resources=made)
        request = resources_pb2.UpdateResourcesRequest(resources_id="rs-one", resources=made)
        return "update_resources", request


def frozen(message: Message) -> bytes:
    """Return a message's bytes, the same for the same content."""
    return message.SerializeToString(deterministic=True)


async def dump(store: Store) -> list[bytes]:
    """Return all that can be read of a store, but for how long it has been up and where.

    Finishes of the last minute are left out, too: they are counted as they become durable, and when a thread has written
    a commit of the watchdog is not on the manual clock.
    """
    found: list[Message] = []
    token, first = "", True
    while token or first:
        request = rollout_pb2.ListRolloutsRequest(page_size=500, page_token=token)
        page = await store.list_rollouts(request)
        token, first = page.next_page_token, False
        for record in page.rollouts:
            found.append(record)
            attempts = attempt_pb2.ListAttemptsRequest(rollout_id=record.rollout_id)
            found.append(await store.list_attempts(attempts))
            spans = span_pb2.QuerySpansRequest(rollout_id=record.rollout_id)
            async for answer in store.query_spans(spans):
                if answer is not None:
                    found.append(span_pb2.QuerySpansResponse.FromString(answer))  # noqa: PERF401
    found += (await store.list_workers(worker_pb2.ListWorkersRequest())).workers
    found += (await store.list_resources(resources_pb2.ListResourcesRequest())).resources
    consumers = consumer_pb2.ListConsumersRequest()
    for consumer in (await store.list_consumers(consumers)).consumers:
        deliveries = consumer_pb2.ListDeliveriesRequest(consumer=consumer.name, page_size=1000)
        found += [consumer, await store.list_deliveries(deliveries)]
    statistics = await store.get_statistics(statistics_pb2.GetStatisticsRequest())
    passing = ("uptime", "finished_last_minute_count")
    for field in (*passing, "file_bytes", "disk_bytes", "disk_free_bytes"):
        statistics.ClearField(field)
    return [frozen(message) for message in [*found, statistics]]


def writes() -> Iterator[str]:
    """Yield the names of the calls of the contract that take a request id."""
    for method in SERVICE.methods:
        if "request_id" in method.input_type.fields_by_name:
            yield method.name
