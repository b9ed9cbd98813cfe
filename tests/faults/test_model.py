"""Random operations and clock jumps on both back ends, beside a model that says what must come out."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as from_seed
from hypothesis.stateful import (
    RuleBasedStateMachine,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lightningstore.service.rules.consumers import ConsumerExists, DeliveryEnded
from lightningstore.service.rules.errors import (
    ClaimsPaused,
    RolloutNotFinished,
    TransitionNotAllowed,
    VersionRemoved,
)
from lightningstore.service.rules.groups import GroupExists, GroupFull
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1 import (
    attempt_pb2,
    claim_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
    worker_pb2,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import Calls
from tests.clock import ManualClock
from tests.faults.consumer_model import Refused
from tests.faults.consumer_rules import ConsumerRules
from tests.faults.group_rules import GROUPS, GroupRules
from tests.faults.model import KEPT, LIVE, Attempt, Model, Rollout

STEPS = 50
#: A file system in memory: what a disk does is no part of this.
MEMORY = Path("/dev/shm")
WORKERS = st.sampled_from(["", "a", "b", "c"])
WORDS = ("succeeded", "failed", "timeout", "unresponsive")
ENDS = st.sampled_from([*WORDS, "running"])
QUEUES = st.sampled_from(["", "", "gpu", "cpu"])
CLAIMED = st.lists(QUEUES, max_size=3)
SMALL = st.integers(0, 3)
PICK = st.integers(0, 1 << 16)
RESOURCES = ["a", "b"]
REFUSALS = (
    *(TransitionNotAllowed, RolloutNotFinished, ClaimsPaused, GroupFull, GroupExists),
    *(ConsumerExists, DeliveryEnded),
)


def number(enum: Any, prefix: str, word: str) -> int:
    return int(enum.Value(f"{prefix}_{word.upper()}"))


def word(enum: Any, prefix: str, value: int) -> str:
    return str(enum.Name(value))[len(prefix) + 1 :].lower()


def told(answer: Any) -> Any:
    """Return the expected answer to a repeated request, with rollouts in their current state."""
    rollouts = list(getattr(answer, "rollouts", ()))
    if hasattr(answer, "rollout"):
        rollouts.append(answer.rollout)
    return [r.rollout_id for r in rollouts] or answer


class Machine(GroupRules, ConsumerRules, RuleBasedStateMachine):
    """One store and one model. Subclasses name the back end."""

    backend = "memory"
    steps = 0

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)
        self.clock = ManualClock()
        self.model = Model()
        self.ids: dict[tuple[str, int], str] = {}
        self.turn = 0
        self.enqueued = 0
        self.given = {}
        self.open()

    def open(self) -> None:
        config = Config(
            backend=self.backend,
            db=Path(self.folder.name) / "model.db",
            keep_resource_versions=KEPT,
        )
        self.service = self.loop.run_until_complete(open_store(config, self.clock))
        self.store = Calls(self.service)

    def teardown(self) -> None:
        try:
            self.check_all()
        finally:
            self.loop.run_until_complete(self.service.close())
            self.loop.close()
            self.folder.cleanup()

    def count(self) -> None:
        self.turn += 1
        type(self).steps += 1

    # Doing the same to both

    async def _call(self, method: str, request: Any) -> Any:
        """Call the store; every fourth write is repeated, and must get the same answer."""
        twice = hasattr(request, "request_id") and self.turn % 4 == 0
        if twice:
            request.request_id = f"request-{self.turn}"
        answer = await getattr(self.store, method)(request)
        if twice:
            again = await getattr(self.store, method)(request)
            assert told(again) == told(answer)
        return answer

    def both(self, method: str, request: Any, event: Any) -> tuple[Any, Any]:
        """Do it to the model and to the store; returns both answers, None where both refused it."""
        self.count()
        expected, refused = None, False
        try:
            expected = event()
        except Refused:
            refused = True

        async def act() -> Any:
            try:
                answer = await self._call(method, request)
            except REFUSALS:
                assert refused, f"{request} was refused"
                return None
            assert not refused, f"{request} was not refused"
            await self.clock.advance(0)
            return answer

        answer = self.loop.run_until_complete(act())
        self.model.expire()
        return answer, expected

    def rollout(self, pick: int) -> tuple[str, Rollout]:
        names = list(self.model.rollouts)
        name = names[pick % len(names)]
        return name, self.model.rollouts[name]

    def attempt(self, pick: int) -> tuple[dict[str, str], Rollout, Attempt]:
        every = [(n, k) for n, r in self.model.rollouts.items() for k in range(len(r.attempts))]
        # The newest are the interesting ones.
        name, k = every[-1 - (pick % min(len(every), 12))]
        rollout = self.model.rollouts[name]
        names = {"rollout_id": name, "attempt_id": self.ids[name, k]}
        return names, rollout, rollout.attempts[k]

    def has_rollouts(self) -> bool:
        return bool(self.model.rollouts)

    def has_attempts(self) -> bool:
        return any(r.attempts for r in self.model.rollouts.values())

    def note(self, record: Any) -> None:
        self.ids[record.rollout_id, record.attempt_count - 1] = record.latest_attempt_id

    # The rules

    @rule(resources_id=st.sampled_from(RESOURCES))
    def publish(self, resources_id: str) -> None:
        request = resources_pb2.UpdateResourcesRequest(resources_id=resources_id)
        answer, expected = self.both(
            "update_resources", request, lambda: self.model.publish(resources_id)
        )
        assert (answer.resources.version, answer.resources.publish_number) == expected

    @rule(
        priority=SMALL,
        most=SMALL,
        timed=st.integers(0, 7),
        retry=st.integers(0, 7),
        resources_id=st.sampled_from(["", "latest", "latest", *RESOURCES]),
        queue=QUEUES,
        group=GROUPS,
    )
    def enqueue(
        self,
        priority: int,
        most: int,
        timed: int,
        retry: int,
        resources_id: str,
        queue: str,
        group: str,
    ) -> None:
        n = self.enqueued
        self.enqueued += 1
        made = Rollout(
            priority=priority % 2,
            # No two deadlines meet: which of them comes first would be open.
            timeout=20 + n * 0.0137 if timed & 1 else None,
            silence=7 + n * 0.0119 if timed & 2 else None,
            most=most + 1,
            resources_id=resources_id if resources_id in (*self.model.versions, "latest") else "",
            retry=tuple(w for i, w in enumerate(WORDS[1:]) if retry >> i & 1),
            backoff=3 + n * 0.0101 if timed & 4 else 0.0,
            queue=queue,
            group=group,
        )
        spec = rollout_pb2.RolloutSpec(
            rollout_id=f"r{n}",
            input_json=b"1",
            priority=made.priority,
            config=config(made),
            resources_id=made.resources_id,
            queue=queue,
            group_id=group,
        )
        request = rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec])
        self.both("enqueue_rollouts", request, lambda: self.model.enqueue(f"r{n}", made))

    @rule(limit=SMALL, worker=WORKERS, queues=CLAIMED)
    def dequeue(self, limit: int, worker: str, queues: list[str]) -> None:
        request = claim_pb2.DequeueRolloutsRequest(limit=limit, worker_id=worker, queues=queues)
        reply, _ = self.both("dequeue_rollouts", request, lambda: None)
        named = queues or [""]
        for record in reply.rollouts:
            assert record.rollout_id in self.model.candidates(named)
            self.model.claim(record.rollout_id, worker)
            self.note(record)
        assert len(reply.rollouts) == limit or not self.model.candidates(named)
        if not reply.rollouts:
            self.model.asked_in_vain(worker)

    @precondition(has_rollouts)
    @rule(pick=PICK, queue=QUEUES)
    def move(self, pick: int, queue: str) -> None:
        name, rollout = self.rollout(pick)
        record = rollout_pb2.Rollout(rollout_id=name, queue=queue)
        request = rollout_pb2.UpdateRolloutRequest(rollout=record, update_mask={"paths": ["queue"]})
        self.both("update_rollout", request, lambda: setattr(rollout, "queue", queue))

    @precondition(lambda self: self.turn % 5 == 0)
    @rule()
    def pause(self) -> None:
        request = claim_pb2.PauseClaimsRequest()
        reply, _ = self.both("pause_claims", request, lambda: setattr(self.model, "paused", True))
        assert reply.HasField("pause")

    @rule()
    def resume(self) -> None:
        was_paused, request = self.model.paused, claim_pb2.ResumeClaimsRequest()
        reply, _ = self.both("resume_claims", request, lambda: setattr(self.model, "paused", False))
        assert reply.HasField("ended_pause") == was_paused

    @precondition(has_rollouts)
    @rule(pick=PICK, worker=WORKERS)
    def start(self, pick: int, worker: str) -> None:
        name, _ = self.rollout(pick)
        request = claim_pb2.StartAttemptRequest(rollout_id=name, worker_id=worker)
        reply, _ = self.both("start_attempt", request, lambda: self.model.claim(name, worker))
        if reply is not None:
            self.note(reply.rollout)

    @precondition(has_attempts)
    @rule(pick=PICK, again=st.booleans())
    def span(self, pick: int, again: bool) -> None:
        names, rollout, attempt = self.attempt(pick)
        fresh = not again or not attempt.spans
        attempt.spans += fresh
        span = Span(trace_id=b"t" * 16, span_id=attempt.spans.to_bytes(8, "big"), name="s")
        request = span_pb2.AddSpansRequest(batch={**names, "spans": [span]})

        def event() -> str:
            self.model.heard(rollout, attempt, by_span=True)
            return self.model.stop(rollout, attempt)

        answer, stop = self.both("add_spans", request, event)
        result = answer.result
        assert (result.accepted_count, result.duplicate_count) == (fresh, not fresh)
        self._same_stops(result.stops, stop)

    @rule(pick=PICK, worker=st.sampled_from(["a", "b"]))
    def heartbeat(self, pick: int, worker: str) -> None:
        request = worker_pb2.HeartbeatRequest(worker_id=worker)
        if not self.has_attempts():
            self.both("heartbeat", request, lambda: self.model.beat(worker))
            return
        names, rollout, attempt = self.attempt(pick)
        request.attempts.add(**names)

        def event() -> str:
            self.model.heard(rollout, attempt, by_span=False)
            self.model.beat(worker)
            return self.model.stop(rollout, attempt)

        answer, stop = self.both("heartbeat", request, event)
        self._same_stops(answer.stops, stop)

    def _same_stops(self, stops: Any, reason: str) -> None:
        told = [word(attempt_pb2.StopReason, "STOP_REASON", s.reason) for s in stops]
        assert told == ([reason] if reason else [])

    @precondition(has_attempts)
    @rule(pick=PICK, end=ENDS, retryable=st.sampled_from([True, True, False]))
    def report(self, pick: int, end: str, retryable: bool) -> None:
        names, rollout, attempt = self.attempt(pick)
        status = number(attempt_pb2.AttemptStatus, "ATTEMPT_STATUS", end)
        request = attempt_pb2.UpdateAttemptRequest(attempt={**names, "status": status})
        if end == "failed" and not retryable:
            request.attempt.failure.retryable = False
        counts = retryable or end != "failed"

        def event() -> None:
            self.model.report(rollout, attempt, end, retryable=counts)

        self.both("update_attempt", request, event)

    @precondition(has_rollouts)
    @rule(pick=PICK, status=st.sampled_from(["queuing", "requeuing", "running", *WORDS[:2]]))
    def put(self, pick: int, status: str) -> None:
        name, rollout = self.rollout(pick)
        value = number(rollout_pb2.RolloutStatus, "ROLLOUT_STATUS", status)
        request = rollout_pb2.UpdateRolloutRequest(rollout={"rollout_id": name, "status": value})
        self.both("update_rollout", request, lambda: self.model.put(rollout, status))

    @precondition(has_rollouts)
    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        name, rollout = self.rollout(pick)
        request = rollout_pb2.CancelRolloutsRequest(rollout_ids=[name])
        self.both("cancel_rollouts", request, lambda: self.model.cancel(rollout))

    @precondition(has_rollouts)
    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        name, _ = self.rollout(pick)
        request = rollout_pb2.DeleteRolloutsRequest(rollout_ids=[name])
        reply, _ = self.both("delete_rollouts", request, lambda: self.model.delete(name))
        if reply is not None:
            assert reply.deleted_rollout_ids == [name]
            again, _ = self.both("delete_rollouts", request, lambda: None)
            assert again.missing_rollout_ids == [name]

    # Time

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 3.0, 5.0, 6.5, 6.9, 15.0]))
    def pass_time(self, seconds: float) -> None:
        self.count()
        self.loop.run_until_complete(self.clock.advance(seconds))
        self.model.pass_time(seconds)
        self.loop.run_until_complete(self._check())

    @precondition(lambda self: self.turn % 4 == 0)
    @rule()
    def pass_ten_minutes(self) -> None:
        self.pass_time(700.0)

    @precondition(lambda self: self.turn % 3 == 0)
    @rule(seconds=st.sampled_from([2.0, 9.0, 45.0]))
    def stall(self, seconds: float) -> None:
        self.count()
        self.loop.run_until_complete(self.clock.stall(seconds))
        self.model.stall(seconds)
        self.loop.run_until_complete(self._check())

    @rule(seconds=st.sampled_from([-4000.0, -5.0, 5.0, 4000.0]))
    def set_wall_clock(self, seconds: float) -> None:
        self.count()
        self.clock.jump_wall(seconds)

    @rule()
    def check_all(self) -> None:
        """Compare all that can be seen."""
        self.count()
        self.loop.run_until_complete(self._check())

    async def _check(self) -> None:
        model = self.model
        for name, rollout in model.rollouts.items():
            request = rollout_pb2.GetRolloutRequest(rollout_id=name)
            record = (await self.store.get_rollout(request)).rollout
            status = word(rollout_pb2.RolloutStatus, "ROLLOUT_STATUS", record.status)
            assert status == rollout.status, name
            assert record.HasField("end_time") == rollout.finished
            assert record.completion_number == rollout.number
            attempts = attempt_pb2.ListAttemptsRequest(rollout_id=name)
            for mine, a in zip(
                rollout.attempts, (await self.store.list_attempts(attempts)).attempts, strict=True
            ):
                status = word(attempt_pb2.AttemptStatus, "ATTEMPT_STATUS", a.status)
                assert (status, a.span_count) == (mine.status, mine.spans), name
                assert a.HasField("end_time") == (mine.status not in LIVE)
                used = (a.resources_id, a.resources_version, a.publish_number)
                assert used == mine.resources, name
        await self.check_groups()
        await self.check_consumers()
        listed = await self.store.list_rollouts(rollout_pb2.ListRolloutsRequest(page_size=1000))
        assert [r.rollout_id for r in listed.rollouts] == list(model.rollouts)
        reply = await self.store.get_statistics(statistics_pb2.GetStatisticsRequest())
        assert reply.queue_depth == sum(r.place > 0 for r in model.rollouts.values())
        depths = Counter(r.queue for r in model.rollouts.values() if r.place)
        assert {entry.queue: entry.depth for entry in reply.queues} == depths
        assert reply.HasField("claim_pause") == model.paused
        live = [a for r in model.rollouts.values() for a in r.attempts if a.status in LIVE]
        assert reply.running_attempt_count == len(live)
        assert reply.last_completion_number == model.finishes
        assert reply.latest_publish_number == model.publications
        numbers = {number for kept in model.versions.values() for _, number in kept}
        for number in range(1, model.publications + 1):
            get = resources_pb2.GetResourcesRequest(publish_number=number)
            try:
                await self.store.get_resources(get)
                assert number in numbers
            except VersionRemoved:
                assert number not in numbers
        workers = await self.store.list_workers(worker_pb2.ListWorkersRequest())
        assert model.workers == {
            w.worker_id: word(worker_pb2.WorkerStatus, "WORKER_STATUS", w.status)
            for w in workers.workers
        }


class DurableMachine(Machine):
    """The same over a file, with restarts."""

    backend = "sqlite"
    steps = 0

    @precondition(lambda self: self.turn % 3 == 0)
    @rule(down=st.sampled_from([0.0, 10.0, 300.0]))
    def restart(self, down: float) -> None:
        self.count()
        self.loop.run_until_complete(self.service.close())
        self.clock.jump(down)
        self.open()
        self.loop.run_until_complete(self.clock.advance(0))
        self.model.restart(down)
        self.loop.run_until_complete(self._check())


def config(made: Rollout) -> rollout_pb2.RolloutConfig:
    found = rollout_pb2.RolloutConfig(max_attempts=made.most)
    for name, seconds in (("timeout", made.timeout), ("unresponsive_timeout", made.silence)):
        if seconds is not None:
            getattr(found, name).FromNanoseconds(round(seconds * 1e9))
    if made.backoff:
        found.retry_backoff.initial_delay.FromNanoseconds(round(made.backoff * 1e9))
    found.retry_condition.extend(
        number(attempt_pb2.AttemptStatus, "ATTEMPT_STATUS", w) for w in made.retry
    )
    return found


@pytest.mark.parametrize("machine", [Machine, DurableMachine], ids=["memory", "sqlite"])
def test_random_operations_come_out_as_the_model_says(
    machine: type[Machine], tries, seed: int
) -> None:
    logging.getLogger("lightningstore").setLevel(logging.ERROR)  # stalls are meant here
    wanted, machine.steps = tries("model steps"), 0
    while machine.steps < wanted:
        seed += 1
        run_state_machine_as_test(
            from_seed(seed)(machine),
            settings=settings(
                max_examples=max(20, min(200, (wanted - machine.steps) // STEPS)),
                stateful_step_count=STEPS,
                deadline=None,
                database=None,
                print_blob=True,
                phases=[Phase.generate, Phase.shrink],
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{machine.steps} operations")
