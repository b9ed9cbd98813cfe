"""What clients were answered, what they were not, and whether a store agrees. Over the bare stubs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import uuid
from typing import Any

import grpc
from lightningstore.v1 import attempt_pb2, claim_pb2, completion_pb2, rollout_pb2, span_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.delivery_ledger import CALL_SECONDS, Deliveries, Held

FINISHED = {4: "SUCCEEDED", 5: "FAILED", 6: "CANCELLED"}
LIVE = (1, 2)
#: Members of a group. Every batch of this size is one.
GROUP_SIZE = 5


class Ledger:
    """Everything that some clients asked of a store, and what it answered."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        #: Rollouts that must be there, with their inputs.
        self.rollouts: dict[str, bytes] = {}
        #: Batches without an answer: all or none of a batch may be there.
        self.open_batches: list[rollout_pb2.EnqueueRolloutsRequest] = []
        #: Attempts that were answered, and by which request id.
        self.claims: dict[tuple[str, str], str] = {}
        self.open_claims: list[claim_pb2.DequeueRolloutsRequest] = []
        #: Live attempts whose workers ended with the server.
        self.left: list[tuple[str, str]] = []
        #: Span ids by attempt that must be there; and groups of which all or none may be.
        self.spans: dict[tuple[str, str], set[bytes]] = {}
        self.open_spans: dict[tuple[str, str], list[set[bytes]]] = {}
        #: Attempts that got spans since the last comparison.
        self.fresh: set[tuple[str, str]] = set()
        #: Attempts' words that were answered, and those that were not.
        self.words: dict[tuple[str, str], int] = {}
        self.open_words: dict[tuple[str, str], int] = {}
        self.metadata: dict[str, set[bytes]] = {}
        self.finishes: dict[int, str] = {}
        self.deliveries = Deliveries(dice)
        self.answered = self.unanswered = 0
        #: Set by every answer.
        self.heard = asyncio.Event()

    def successor(self) -> Ledger:
        """Return a ledger for an empty store, which goes on counting."""
        new = Ledger(self.dice)
        new.answered, new.unanswered = self.answered, self.unanswered
        return new

    # Working

    async def work(self, stub: LightningStoreServiceStub) -> None:
        """Write at random until the server is gone."""
        mine = [self.left.pop() for _ in range(min(4, len(self.left)))]
        left = self.deliveries.left
        held: list[Held] = [left.pop() for _ in range(min(20, len(left)))]
        acts = [self._enqueue, self._claim, self._ingest, self._ingest, self._finish, self._update]
        acknowledge = self.deliveries.acknowledge
        calls: list[tuple[Any, list[Any]]] = [(act, mine) for act in acts]
        calls += [(self.deliveries.pull, held), (acknowledge, held), (acknowledge, held)]
        try:
            while True:
                act, names = self.dice.choice(calls)
                if await act(stub, names):
                    self.answered += 1
                    self.heard.set()
        except grpc.aio.AioRpcError as error:
            assert error.code() in (
                grpc.StatusCode.UNAVAILABLE,
                grpc.StatusCode.CANCELLED,
                grpc.StatusCode.UNKNOWN,  # gRPC's word for a stream that was cut
                grpc.StatusCode.DEADLINE_EXCEEDED,
            ) or _is_of_a_late_write(error), error
            self.unanswered += 1
        self.left += mine
        self.deliveries.left += held

    # Each returns whether there was something to do, which was then answered.

    async def _enqueue(self, stub: Any, _mine: list[tuple[str, str]]) -> bool:
        size = self.dice.choice([1, 1, GROUP_SIZE, 40])
        group_id = f"g{self.dice.getrandbits(96):x}" if size == GROUP_SIZE else ""
        specs = [
            rollout_pb2.RolloutSpec(
                rollout_id=f"ro-{uuid.UUID(int=self.dice.getrandbits(128)).hex}",
                input_json=b'"%d"' % self.dice.getrandbits(60),
                metadata_json=b"{}",
                group_id=group_id,
            )
            for _ in range(size)
        ]
        request = rollout_pb2.EnqueueRolloutsRequest(rollouts=specs)
        if group_id:
            request.groups.add(group_id=group_id, size=size)
        if self.dice.random() < 0.5:
            request.request_id = f"{self.dice.getrandbits(96):x}"
        self.open_batches.append(request)
        await stub.EnqueueRollouts(request, timeout=CALL_SECONDS)
        self._note_batch(request)
        return True

    def _note_batch(self, request: rollout_pb2.EnqueueRolloutsRequest) -> None:
        self.open_batches.remove(request)
        self.rollouts |= {spec.rollout_id: spec.input_json for spec in request.rollouts}

    async def _claim(self, stub: Any, mine: list[tuple[str, str]]) -> bool:
        request = claim_pb2.DequeueRolloutsRequest(
            limit=self.dice.choice([1, 1, 4]),
            request_id=f"{self.dice.getrandbits(96):x}",
            worker_id=f"w{self.dice.randrange(4)}",
        )
        self.open_claims.append(request)
        answer = await stub.DequeueRollouts(request, timeout=CALL_SECONDS)
        self.open_claims.remove(request)
        mine += self.note_claims(request, answer)
        return True

    def note_claims(self, request: Any, answer: Any) -> list[tuple[str, str]]:
        """Record an answered claim. No other claim may have returned one of its attempts."""
        names = [(r.rollout_id, r.latest_attempt.attempt_id) for r in answer.rollouts]
        for name in names:
            assert self.claims.setdefault(name, request.request_id) == request.request_id, name
        return names

    async def _ingest(self, stub: Any, mine: list[tuple[str, str]]) -> bool:
        if not mine:
            return False
        name = self.dice.choice(mine)
        self.fresh.add(name)
        groups = [{os.urandom(8) for _ in range(self.dice.choice([1, 10]))} for _ in range(2)]
        self.open_spans.setdefault(name, []).extend(groups)
        messages = [
            span_pb2.IngestSpansRequest(
                batch={
                    "rollout_id": name[0],
                    "attempt_id": name[1],
                    "spans": [Span(trace_id=b"t" * 16, span_id=i, name="s") for i in sorted(group)],
                }
            )
            for group in groups
        ]
        answer = await _send(stub.IngestSpans(timeout=CALL_SECONDS), messages)
        assert answer.result.accepted_count == sum(map(len, groups))
        for group in groups:
            self.open_spans[name].remove(group)
            self.spans.setdefault(name, set()).update(group)
        return True

    async def _finish(self, stub: Any, mine: list[tuple[str, str]]) -> bool:
        if not mine or self.dice.random() < 0.5:
            return False
        name = mine.pop(self.dice.randrange(len(mine)))
        word = self.dice.choice([3, 4])
        self.open_words[name] = word
        request = attempt_pb2.UpdateAttemptRequest(
            attempt={"rollout_id": name[0], "attempt_id": name[1], "status": word}
        )
        await stub.UpdateAttempt(request, timeout=CALL_SECONDS)
        del self.open_words[name]
        self.words[name] = word
        return True

    async def _update(self, stub: Any, mine: list[tuple[str, str]]) -> bool:
        if not mine:
            return False
        rollout_id = self.dice.choice(mine)[0]
        value = b'{"value": %d}' % self.dice.getrandbits(40)
        self.metadata.setdefault(rollout_id, {b"{}"}).add(value)
        request = rollout_pb2.UpdateRolloutRequest(
            rollout={"rollout_id": rollout_id, "metadata_json": value}
        )
        await stub.UpdateRollout(request, timeout=CALL_SECONDS)
        if rollout_id not in [name[0] for name in self.open_words]:
            self.metadata[rollout_id] = {value}
        return True

    # Asking again, and comparing

    async def settle(self, stub: LightningStoreServiceStub) -> None:
        """Repeat half of what had no answer: it must have its effect once. The rest stays open."""
        for request in list(self.open_batches):
            if self.dice.random() < 0.5:
                await self._enqueue_again(stub, request)
                self._note_batch(request)
        for request in self.open_claims:
            self.note_claims(request, await stub.DequeueRollouts(request, timeout=CALL_SECONDS))
        self.open_claims.clear()
        await self.deliveries.settle(stub)

    async def _enqueue_again(self, stub: Any, request: rollout_pb2.EnqueueRolloutsRequest) -> None:
        """Repeat a batch. Its ids alone identify it as long as no caller has updated its rollouts."""
        try:
            await stub.EnqueueRollouts(request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            assert error.code() == grpc.StatusCode.ALREADY_EXISTS, error
            assert not request.request_id
            assert any(spec.rollout_id in self.metadata for spec in request.rollouts)

    async def check(self, stub: LightningStoreServiceStub, *, all_spans: bool = False) -> None:
        """Compare all that was answered with all that is there; of older spans a part, or all."""
        stored = await self._stored(stub)
        for rollout_id, content in self.rollouts.items():
            assert stored[rollout_id].input_json == content
        for request in self.open_batches:
            present = [spec.rollout_id in stored for spec in request.rollouts]
            assert all(present) or not any(present), "half a batch"
        attempts = await self._attempts(stub, stored)
        missing = [name for name in self.claims if name not in attempts]
        assert not missing, f"claims were lost: {missing}"
        for rollout_id in stored:
            live = [n for n, a in attempts.items() if n[0] == rollout_id and a.status in LIVE]
            assert len(live) <= 1, f"two live attempts: {live}"
        for name, word in self.words.items():
            assert attempts[name].status == word
            assert stored[name[0]].status == (4 if word == 3 else 5)
        for name, word in self.open_words.items():
            assert attempts[name].status in (*LIVE, word)
        for rollout_id, values in self.metadata.items():
            assert stored[rollout_id].metadata_json in values
        self._check_completions(stored)
        await self.deliveries.check(stub, self.finishes, stored)
        touched = list(self.spans.keys() | self.open_spans.keys())
        older = touched if all_spans else self.dice.sample(touched, min(25, len(touched)))
        for name in self.fresh.union(older):
            await self._check_spans(stub, name)
        self.fresh.clear()

    async def _stored(self, stub: Any) -> dict[str, Any]:
        stored: dict[str, Any] = {}
        token = ""
        while True:
            page = await stub.ListRollouts(
                rollout_pb2.ListRolloutsRequest(page_size=1000, page_token=token)
            )
            stored |= {r.rollout_id: r for r in page.rollouts}
            token = page.next_page_token
            if not token:
                return stored

    async def _attempts(self, stub: Any, stored: dict[str, Any]) -> dict[tuple[str, str], Any]:
        """Return all attempts that somebody knows of, from records where one is all there is."""
        found: dict[tuple[str, str], Any] = {}
        for rollout in stored.values():
            if rollout.attempt_count == 1:
                found[rollout.rollout_id, rollout.latest_attempt_id] = rollout.latest_attempt
            elif rollout.attempt_count:
                request = attempt_pb2.ListAttemptsRequest(rollout_id=rollout.rollout_id)
                for attempt in (await stub.ListAttempts(request)).attempts:
                    found[rollout.rollout_id, attempt.attempt_id] = attempt
        return found

    def _check_completions(self, stored: dict[str, Any]) -> None:
        numbers = {r.completion_number: i for i, r in stored.items() if r.completion_number}
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), "completion numbers have gaps"
        for number, rollout_id in self.finishes.items():
            assert numbers[number] == rollout_id, "a completion number was given twice"
        self.finishes = numbers
        for rollout_id, rollout in stored.items():
            assert (rollout.status in FINISHED) == bool(rollout.completion_number), rollout_id

    async def _check_spans(self, stub: Any, name: tuple[str, str]) -> None:
        request = span_pb2.QuerySpansRequest(rollout_id=name[0], attempt_id=name[1])
        found: list[bytes] = []
        numbers: list[int] = []
        async for answer in stub.QuerySpans(request, timeout=CALL_SECONDS):
            for batch in answer.batches:
                found += [span.span_id for span in batch.spans]
                numbers += batch.sequence_ids
        there = set(found)
        assert len(there) == len(found), "a span is there twice"
        assert len(set(numbers)) == len(numbers), "a sequence id was given twice"
        assert self.spans.get(name, set()) <= there, "an answered span is gone"
        for group in self.open_spans.get(name, []):
            assert group <= there or not group & there, "half a batch of spans"

    async def finish_all(self, stub: LightningStoreServiceStub) -> None:
        """Claim and finish whatever is left: nothing may be stuck."""
        while True:
            request = claim_pb2.DequeueRolloutsRequest(limit=500)
            claimed = (await stub.DequeueRollouts(request, timeout=CALL_SECONDS)).rollouts
            if not claimed:
                break
            for r in claimed:
                await self._succeed(stub, r.rollout_id, r.latest_attempt.attempt_id)
        for name, attempt in (await self._attempts(stub, await self._stored(stub))).items():
            if attempt.status in LIVE:
                await self._succeed(stub, *name)
        stored = await self._stored(stub)
        waiting = completion_pb2.WaitForRolloutsRequest(rollout_ids=list(stored))
        told = [r async for m in stub.WaitForRollouts(waiting, timeout=60) for r in m.rollouts]
        assert len(told) == len(stored)
        await self.deliveries.drain(stub)
        stored = await self._stored(stub)
        self._check_completions(stored)
        await self.deliveries.check(stub, self.finishes, stored)

    @staticmethod
    async def _succeed(stub: Any, rollout_id: str, attempt_id: str) -> None:
        attempt = {"rollout_id": rollout_id, "attempt_id": attempt_id, "status": 3}
        await stub.UpdateAttempt(
            attempt_pb2.UpdateAttemptRequest(attempt=attempt), timeout=CALL_SECONDS
        )


async def _send(call: Any, messages: list[Any]) -> Any:
    """Send a stream and return its answer.

    Given an iterator grpc.aio would do it, but where the end of a server cuts off the half-close of a call it
    cancels that call, which looks as if somebody had cancelled the task.
    """
    with contextlib.suppress(asyncio.InvalidStateError, grpc.aio.InternalError):  # it has ended
        for message in messages:
            await call.write(message)
        await call.done_writing()
    return await call


def _is_of_a_late_write(error: grpc.aio.AioRpcError) -> bool:
    """Tell whether grpc.aio made the error up for a write to a call that the server's end had cut off."""
    made_up = (error.details() or "").startswith("Internal error from Core")
    return error.code() is grpc.StatusCode.INTERNAL and made_up


async def work_until(ledger: Ledger, address: str, seconds: float, end) -> None:
    """Have eight clients work, and `end` the server that many seconds after the first answer."""
    ledger.heard.clear()
    channels = [grpc.aio.insecure_channel(address) for _ in range(4)]
    stubs = [LightningStoreServiceStub(channel) for channel in channels]
    await ledger.deliveries.create(stubs[0])
    tasks = [asyncio.create_task(ledger.work(stub)) for stub in stubs * 2]
    await asyncio.wait_for(ledger.heard.wait(), CALL_SECONDS)
    await asyncio.sleep(seconds)  # the moment of the crash: nothing waits for it
    end()
    await asyncio.gather(*tasks)
    await asyncio.gather(*(channel.close() for channel in channels))
