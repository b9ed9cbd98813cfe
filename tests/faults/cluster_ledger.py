"""What users of several servers were answered, and whether all servers agree. With the Python client and its retries."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, TypeVar

from lightningstore.client import (
    AsyncLightningStore,
    DeadlineExceededError,
    GroupSpec,
    LightningStoreError,
    Rollout,
    RolloutStatus,
    SpanBatch,
    UnavailableError,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.cluster_consumer import ClusterConsumer

T = TypeVar("T")

#: Errors of a call whose server is gone for longer than the call's deadline.
NO_ANSWER = (UnavailableError, DeadlineExceededError)
#: Deadline of a call, its retries included; and the longest time that any call may take. An upload may wait as long for
#: the server, before and after the retries of a break.
CALL_SECONDS, PATIENCE = 20.0, 70.0
#: Attempts whose spans are compared at the same time.
AT_ONCE = 8
FINISHED = (RolloutStatus.SUCCEEDED, RolloutStatus.FAILED)


class TimedCall(NamedTuple):
    """A call, and how long it took with its retries."""

    name: str
    seconds: float


class ClusterLedger:
    """Everything that the users of one namespace were answered."""

    def __init__(
        self,
        namespace: str,
        addresses: Sequence[str],
        dice: random.Random,
        *,
        pause: float = 0.0,
    ) -> None:
        """Take the namespace, the servers, chance, and the seconds that a user pauses before a rollout, at most."""
        self.namespace, self.dice = namespace, dice
        self._pause = pause
        #: A client of each server.
        self.stores = [
            AsyncLightningStore(address, timeout=CALL_SECONDS, namespace=namespace)
            for address in addresses
        ]
        self._number = 0
        self._is_over = False
        #: Inputs of rollouts, ids of claimed attempts, span ids of attempts, and statuses, all answered.
        self.inputs: dict[str, int] = {}
        self.claims: dict[str, str] = {}
        self.spans: dict[tuple[str, str], set[str]] = {}
        self.outcomes: dict[str, RolloutStatus] = {}
        #: Numbers of finishes as a watcher saw them.
        self.watched: list[tuple[int, str]] = []
        self.consumers = (ClusterConsumer("trainer", "rollout"), ClusterConsumer("judge", "group"))
        #: Calls without an answer, by the text of the error.
        self.unanswered: Counter[str] = Counter()
        self.answered = self.reads = 0
        self.longest = TimedCall("", 0.0)

    async def work(self) -> None:
        """Enqueue, claim, add spans, report and read, each over a random server, until `finish`."""
        while not self._is_over:
            await asyncio.sleep(self._pause * self.dice.random())
            try:
                await self._enqueue()
                await self._live()
            except NO_ANSWER as error:
                self._note_unanswered(error)

    async def consume(self) -> None:
        """Pull and acknowledge what has finished, until `finish`."""
        while not self._is_over:
            await asyncio.sleep(self._pause * self.dice.random())
            try:
                consumer = self.dice.choice(self.consumers)
                # Each time, as trainers do when they start: any server returns the consumer as it is.
                await self._answer(consumer.create(self._store()))
                await consumer.step(self._store, self._answer)
            except NO_ANSWER as error:
                self._note_unanswered(error)

    def _note_unanswered(self, error: LightningStoreError) -> None:
        self.unanswered[f"{error.code.name}: {error.message}"[:120]] += 1

    async def _answer(self, call: Coroutine[Any, Any, T]) -> T:
        """Return what a call returns, which has to end soon after its deadline."""
        begun = time.monotonic()
        try:
            return await asyncio.wait_for(call, PATIENCE)
        except TimeoutError:
            raise AssertionError(f"{call.__name__} hangs past its deadline") from None
        finally:
            seconds = time.monotonic() - begun
            if seconds > self.longest.seconds:
                self.longest = TimedCall(call.__name__, seconds)

    async def watch(self) -> None:
        """Watch all finishes, and go on from the last number when the stream ends, until cancelled."""
        after, store_id = 0, ""
        while True:
            stream = self._store().watch_rollouts(after, store_id=store_id)
            try:
                async with stream as finishes:
                    async for rollout in finishes:
                        self.watched.append((rollout.completion_number, rollout.rollout_id))
                        after, store_id = rollout.completion_number, stream.store_id
            except NO_ANSWER:
                await asyncio.sleep(0.1)

    def _store(self) -> AsyncLightningStore:
        return self.dice.choice(self.stores)

    async def _enqueue(self) -> None:
        numbers = range(self._number, self._number + self.dice.choice([1, 1, 3]))
        self._number = numbers.stop
        specs: list[dict[str, Any]]
        specs = [{"input": n, "rollout_id": f"{self.namespace}-{n}"} for n in numbers]
        groups = []
        if len(specs) > 1:
            groups.append(GroupSpec(f"{self.namespace}-{numbers[0]}", len(specs)))
            specs = [{**spec, "group_id": groups[0].group_id} for spec in specs]
        await self._answer(self._store().enqueue_rollouts(specs, groups=groups))
        self.inputs |= {f"{self.namespace}-{n}": n for n in numbers}
        self.answered += 1
        assert (await self._read(f"{self.namespace}-{numbers[0]}")).input == numbers[0]

    async def _live(self) -> None:
        """Claim a few rollouts and finish them."""
        for rollout in await self._answer(self._store().dequeue_rollouts(2)):
            attempt_id = rollout.attempt.attempt_id
            assert rollout.rollout_id not in self.claims, "claimed twice"
            self.claims[rollout.rollout_id] = attempt_id
            self.answered += 1
            assert (await self._read(rollout.rollout_id)).attempt.attempt_id == attempt_id
            await self._add_spans(rollout.rollout_id, attempt_id)
            status = self.dice.choice(FINISHED)
            await self._answer(
                self._store().update_attempt(rollout.rollout_id, attempt_id, status=status.value)
            )
            self.outcomes[rollout.rollout_id] = status
            self.answered += 1
            assert (await self._read(rollout.rollout_id)).status == status, "a stale read"

    async def _read(self, rollout_id: str) -> Rollout:
        """Read what was answered, over a server that may not be the one that answered it."""
        rollout = await self._answer(self._store().get_rollout(rollout_id))
        self.reads += 1
        return rollout

    async def _add_spans(self, rollout_id: str, attempt_id: str) -> None:
        ids = {self.dice.randbytes(8) for _ in range(3)}
        spans = [Span(trace_id=b"t" * 16, span_id=i, name="step") for i in sorted(ids)]
        batch = SpanBatch(rollout_id=rollout_id, attempt_id=attempt_id, spans=spans)
        await self._answer(self._store().ingest_spans([batch]))
        self.spans[rollout_id, attempt_id] = {i.hex() for i in ids}
        self.answered += 1

    # The end

    def finish(self) -> None:
        """Have the workers end after what they are at."""
        self._is_over = True

    async def check(self) -> None:
        """Compare all that was answered with what each server shows, and with what the watcher saw."""
        for store in self.stores:
            stored = {rollout.rollout_id: rollout async for rollout in store.iter_rollouts()}
            for rollout_id, content in self.inputs.items():
                assert stored[rollout_id].input == content
            for rollout_id, attempt_id in self.claims.items():
                assert stored[rollout_id].attempt.attempt_id == attempt_id
            for rollout_id, status in self.outcomes.items():
                assert stored[rollout_id].status == status
            numbers = sorted((r.completion_number, i) for i, r in stored.items())
            finished = [(number, i) for number, i in numbers if number]
            assert [number for number, _ in finished] == list(range(1, len(finished) + 1))
            groups = [group async for group in store.iter_groups()]
            completed = sorted(
                group.completion_number for group in groups if group.completion_number
            )
            assert completed == list(range(1, len(completed) + 1))
        items = ({number for number, _ in finished}, set(completed))
        for consumer, numbers_of_items in zip(self.consumers, items, strict=True):
            await consumer.create(self.stores[0])
            await consumer.check(self.stores[0], numbers_of_items)
        async with asyncio.timeout(PATIENCE):
            while len(self.watched) < len(finished):
                await asyncio.sleep(0.05)
        assert self.watched == finished
        left = iter(self.spans.items())

        async def compare() -> None:
            for (rollout_id, attempt_id), ids in left:
                spans = self.stores[0].query_spans(rollout_id, attempt_id)
                assert sorted([span.span_id async for span in spans]) == sorted(ids)

        await asyncio.gather(*[compare() for _ in range(AT_ONCE)])

    async def close(self) -> None:
        """Close the clients."""
        for store in self.stores:
            await store.close()


async def create_namespaces(address: str, names: Sequence[str]) -> None:
    """Create namespaces."""
    async with AsyncLightningStore(address, timeout=CALL_SECONDS) as store:
        for name in names:
            await store.create_namespace(name)


async def silence(address: str, namespace: str) -> float:
    """Return the seconds until a call that creates something is answered, asked again every 20 ms."""
    begun = time.monotonic()
    while time.monotonic() < begun + PATIENCE:
        try:
            async with AsyncLightningStore(address, timeout=1.0, namespace=namespace) as store:
                await store.enqueue_rollout(1)
        except LightningStoreError:
            await asyncio.sleep(0.02)
        else:
            return time.monotonic() - begun
    raise AssertionError(f"nobody answers in namespace {namespace}")
