"""The n-th call on the data file fails, for n = 1, 2, 3 … until a run passes without a fault."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, span_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.faults.lab import Lab, until

FAULTS = [
    *("write once", "write", "write full", "write short"),
    *("sync once", "sync", "sync full", "read once", "read"),
]


class Turn:
    """A rollout's life, call by call; what was answered of it, and what may be there."""

    def __init__(self, stub: Any, name: str) -> None:
        self.stub, self.names = stub, [f"{name}-a", f"{name}-b"]
        self.enqueued = self.finished = False
        self.attempts: set[str] = set()
        self.spans: set[bytes] = set()

    def play(self) -> None:
        """Do all there is to do, whatever fails."""
        for act in (self._enqueue, self._claim, self._ingest, self._finish, self._read):
            try:
                act()
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE, error

    def _enqueue(self) -> None:
        specs = [{"rollout_id": name, "input_json": b"[1]"} for name in self.names]
        self.stub.EnqueueRollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=specs), timeout=10)
        self.enqueued = True

    def _claim(self) -> None:
        if self.enqueued:
            request = claim_pb2.StartAttemptRequest(rollout_id=self.names[0], worker_id="w")
            answer = self.stub.StartAttempt(request, timeout=10)
            self.attempts.add(answer.rollout.latest_attempt.attempt_id)

    def _ids(self) -> Iterator[dict[str, str]]:
        return ({"rollout_id": self.names[0], "attempt_id": i} for i in self.attempts)

    def _ingest(self) -> None:
        for ids in self._ids():
            made = [Span(trace_id=b"t" * 16, span_id=bytes([n] * 8)) for n in range(1, 4)]
            batch = span_pb2.SpanBatch(**ids, spans=made)
            self.stub.AddSpans(span_pb2.AddSpansRequest(batch=batch), timeout=10)
            self.spans.update(span.span_id for span in made)

    def _finish(self) -> None:
        for ids in self._ids():
            record = {**ids, "status": attempt_pb2.ATTEMPT_STATUS_SUCCEEDED}
            self.stub.UpdateAttempt(attempt_pb2.UpdateAttemptRequest(attempt=record), timeout=10)
            self.finished = True

    def _read(self) -> None:
        self.stored()
        if self.enqueued:
            self.stored_spans()

    def stored(self) -> dict[str, Any]:
        """Return what is stored of the two rollouts."""
        request = rollout_pb2.ListRolloutsRequest(rollout_ids=self.names)
        return {r.rollout_id: r for r in self.stub.ListRollouts(request, timeout=10).rollouts}

    def stored_spans(self) -> list[bytes]:
        """Return the ids of the stored spans."""
        request = span_pb2.QuerySpansRequest(rollout_id=self.names[0])
        answers = self.stub.QuerySpans(request, timeout=10)
        return [s.span_id for answer in answers for b in answer.batches for s in b.spans]

    def check(self) -> None:
        """Compare what was answered with what is there."""
        stored = self.stored()
        assert len(stored) in ((2,) if self.enqueued else (0, 2)), "half a batch"
        if not stored:
            return
        first = stored[self.names[0]]
        if self.attempts:
            assert {first.latest_attempt_id} == self.attempts
        assert first.attempt_count <= 1
        spans = self.stored_spans()
        assert len(spans) == len(set(spans))
        assert len(spans) in ((3,) if self.spans else (0, 3)), "half a batch of spans"
        succeeded = rollout_pb2.ROLLOUT_STATUS_SUCCEEDED
        assert first.status == succeeded or not self.finished


@pytest.mark.parametrize("fault", FAULTS)
def test_nth_call_fails_and_nothing_answered_is_lost(
    lab: Lab, dice: random.Random, stride: int, fault: str
) -> None:
    lab.start(breakable=True)
    turns: list[Turn] = []
    what, once, _ = fault.partition(" once")
    at, hurt = 1, True
    with grpc.insecure_channel(lab.address) as channel:
        stub = LightningStoreServiceStub(channel)
        while hurt:
            turn = Turn(stub, f"at-{at}")
            lab.hurt(f"{what} at {at} {once}")
            turn.play()
            hurt = lab.heal()
            until("healthy again", lambda: lab.healthy(channel))
            turn.check()
            turns.append(turn)
            at += dice.randint(1, 2 * stride - 1)
        for turn in turns:
            turn.check()
    assert turns[-1].finished, "the last turn saw no fault"
    lab.kill()
    assert lab.integrity() == "ok"
    print(f"{fault}: {len(turns) - 1} faults, at one of {at} calls")
    assert len(turns) > 1
