"""Claims: DequeueRollouts with its long polls, StartRollout, StartAttempt."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.members import load_groups, load_member
from lightningstore.service.engine.polls import Poll
from lightningstore.service.engine.requests import refer, references
from lightningstore.service.engine.state import AttemptState, Entry
from lightningstore.service.operations.enqueue import Enqueue
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.checks import check_enum, check_queue
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    ClaimsPaused,
    FieldInvalid,
    RolloutExists,
)
from lightningstore.service.rules.ids import LATEST, check_new_id, new_id
from lightningstore.service.rules.rows import Shown
from lightningstore.service.rules.times import check_duration, seconds, stamp
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_FAILED,
    ATTEMPT_STATUS_PREPARING,
    Attempt,
    Failure,
)
from lightningstore.v1.claim_pb2 import (
    DequeueRolloutsRequest,
    DequeueRolloutsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
    StartRolloutRequest,
    StartRolloutResponse,
)
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_PREPARING, RolloutMode

#: Maximum number of rollouts that one call claims. This many hold the event loop for about 20 ms.
CLAIMED_AT_ONCE = 1000
#: Maximum number of task queues that one call names.
MAX_QUEUES = 1000
#: The queues of a claim that names none.
DEFAULT_QUEUE = frozenset([""])
#: Approximate size that a new attempt adds to an answer.
ATTEMPT_BYTES = 512
#: Seconds before the call's deadline at which a long poll answers.
DEADLINE_MARGIN = 0.2
#: Maximum fraction of its wait by which a long poll ends early, so that many polls do not return at
#: the same time.
WAIT_JITTER = 0.05


class Claims:
    """The calls of claim.proto."""

    def __init__(self, engine: Engine, enqueue: Enqueue) -> None:
        self._engine = engine
        self._live = engine.live
        self._enqueue = enqueue

    async def dequeue_rollouts(
        self, request: DequeueRolloutsRequest, time_remaining: float | None = None
    ) -> DequeueRolloutsResponse:
        """Claim up to `limit` rollouts, and wait for one if requested.

        `time_remaining` is the time in seconds until the call's deadline, None without one.
        """
        self._engine.committer.admit()
        queues, modes = self._check_dequeue(request)
        if (answer := self._engine.requests.find("DequeueRollouts", request)) is not None:
            return await self._enqueue.replay(DequeueRolloutsResponse.FromString(answer))
        claimed = self._claim(request, queues, modes)
        wait = 0.0 if claimed else seconds(request.wait)
        if wait and request.limit and not self._engine.closing:
            if time_remaining is not None:
                wait = min(wait, time_remaining - DEADLINE_MARGIN)
            failures = self._engine.committer.failures
            claimed = await self._poll(
                Poll(request, queues, modes, lambda: self._claim(request, queues, modes)), wait
            )
            await self._engine.barrier_since(failures)  # whose operation served it has sealed it
        if not claimed and request.worker_id:
            self._live.workforce.asked(request.worker_id, self._live.now(), in_vain=True)
        await self._engine.commit()
        if any(shown.lacks_input for shown in claimed):
            claimed = await self._read_inputs(claimed)
        reply = DequeueRolloutsResponse()
        for shown in claimed:
            shown.compose_within(reply.rollouts.add(), self._engine.limits.message_bytes)
        return reply

    async def _read_inputs(self, claimed: list[Shown]) -> list[Shown]:
        """Return claimed rollouts with their inputs, all read with one call of the back end.

        The attempts exist and are durable, so no other call waits for this read. If it fails, the
        call fails, and a repeat with the same request id gets the same attempts. An attempt whose
        input is damaged fails and is omitted; otherwise it would be claimed again and again, or run
        without an input.
        """
        whole = await self._engine.with_inputs(claimed)
        for shown in whole:
            entry = self._live.state.entries.get(shown.rollout.rollout_id)
            if shown.lacks_input and shown.attempt is not None and entry is not None:
                attempt = entry.attempts.get(shown.attempt.attempt_id)
                if attempt is not None and lifecycle.is_live(attempt.record):
                    self._fail(attempt)
        await self._engine.commit()
        return [shown for shown in whole if not shown.lacks_input]

    def _fail(self, attempt: AttemptState) -> None:
        """End an attempt, and thereby its rollout, whose input cannot be read."""
        failure = Failure(
            type="DataDamaged",
            message="the stored input of this rollout is damaged",
            retryable=False,
        )
        now, rollout = self._live.now(), attempt.entry.rollout
        transition = lifecycle.report(
            rollout, attempt.record, ATTEMPT_STATUS_FAILED, failure, now, self._engine.dice()
        )
        self._live.apply(attempt.entry, attempt, transition, now)

    def _check_dequeue(
        self, request: DequeueRolloutsRequest
    ) -> tuple[frozenset[str], frozenset[int]]:
        """Return the queues and modes that the request names. Raises FieldInvalid, BatchTooLarge."""
        if request.limit < 0:
            raise FieldInvalid("limit", "must not be negative")
        if request.limit > self._engine.limits.batch_items:
            raise BatchTooLarge("limit", request.limit, self._engine.limits.batch_items)
        for i, mode in enumerate(request.modes):
            check_enum(f"modes[{i}]", RolloutMode, mode, unspecified=True)
        check_new_id("worker_id", request.worker_id, required=False)
        if request.HasField("wait"):
            check_duration("wait", request.wait)
        queues = _checked_queues(tuple(request.queues)) if request.queues else DEFAULT_QUEUE
        return queues, frozenset(request.modes)

    async def _poll(self, poll: Poll, wait: float) -> list[Shown]:
        """Wait until the poll is served, its time is over or the store closes."""
        jitter = 1 - WAIT_JITTER * self._engine.dice()
        until = self._engine.clock.monotonic() + wait * jitter
        return await self._engine.polls.wait(poll, self._engine.clock, until)

    def _claim(
        self, request: DequeueRolloutsRequest, queues: frozenset[str], modes: frozenset[int]
    ) -> list[Shown]:
        """Claim what the queues hold now."""
        claimed: list[Shown] = []
        if not request.limit or self._live.paused:
            return claimed
        now, room = self._live.now(), self._engine.limits.answer_bytes
        most = min(request.limit, CLAIMED_AT_ONCE)
        for rollout_id in self._live.state.queue.claimable(queues, modes):
            entry = self._live.state.entries[rollout_id]
            if most > 1:
                room -= entry.shown().size() + ATTEMPT_BYTES
                if claimed and room < 0:
                    break
            claimed.append(entry.shown(self._start(entry, request.worker_id, now)))
            if len(claimed) == most:
                break
        if not claimed:
            return claimed
        if request.worker_id:
            self._live.workforce.asked(request.worker_id, now, in_vain=False)
        if request.request_id:
            kept = DequeueRolloutsResponse()
            for shown in claimed:
                refer(kept.rollouts.add(), shown.rollout)
            self._engine.remember("DequeueRollouts", request, kept)
        return claimed

    def _start(self, entry: Entry, worker_id: str, now: Timestamp) -> AttemptState:
        """Give the rollout a new attempt. Raises TransitionNotAllowed."""
        attempt = Attempt()  # keywords cost three times as much as assignments
        attempt.rollout_id = entry.rollout.rollout_id
        attempt.attempt_id = self._attempt_id(entry)
        attempt.sequence_number = entry.rollout.attempt_count + 1
        attempt.status = ATTEMPT_STATUS_PREPARING
        attempt.start_time.CopyFrom(now)
        if worker_id:
            attempt.worker_id = worker_id
        if resources_id := entry.rollout.resources_id:
            self._assign_resources(attempt, resources_id)
        transition = lifecycle.claim(entry.rollout, attempt)
        # The rollout's record must be saved first, because deadlines are computed from its status.
        self._live.apply(entry, None, transition, now)
        return self._live.new_attempt(entry, attempt, now)

    def _assign_resources(self, attempt: Attempt, resources_id: str) -> None:
        """Record the current version of the rollout's resources, or of the latest ones."""
        current = self._live.state.resources.current(resources_id)
        if current is not None:
            attempt.resources_id = current.resources_id
            attempt.resources_version = current.version
            attempt.publish_number = current.publish_number
        elif resources_id != LATEST:  # damaged, and removed since the rollout was enqueued
            attempt.resources_id = resources_id

    def _check_not_paused(self) -> None:
        """Raise ClaimsPaused if claims are paused."""
        if pause := self._live.state.counters.pause:
            raise ClaimsPaused(stamp(pause[0]).ToJsonString(), pause[1])

    @staticmethod
    def _attempt_id(entry: Entry) -> str:
        while (attempt_id := new_id("at-", 8)) in entry.attempts:
            pass
        return attempt_id

    async def start_rollout(self, request: StartRolloutRequest) -> StartRolloutResponse:
        """Create a rollout and claim it; it never enters the queue."""
        self._engine.committer.admit()
        spec = request.rollout
        check_new_id("worker_id", request.worker_id, required=False)
        rollout_id = spec.rollout_id or self._enqueue.free_id()
        failures = self._engine.committer.failures
        with self._live.state.held:
            await load_groups(self._engine, [spec.group_id])
            if spec.rollout_id:
                await self._engine.load_many([rollout_id])
            else:
                await self._engine.load_taken([rollout_id])
        # Otherwise a complete group is not in memory any more.
        self._engine.check_unbroken(failures)
        if (answer := self._engine.requests.find("StartRollout", request)) is not None:
            return await self._enqueue.replay(StartRolloutResponse.FromString(answer))
        self._check_not_paused()
        now = self._live.now()
        entry = self._enqueue.new_entry("rollout", spec, now, rollout_id)
        if entry.rollout.rollout_id in self._live.state.entries:
            if spec.rollout_id:
                raise RolloutExists(spec.rollout_id)
            entry.rollout.rollout_id = self._enqueue.free_id()
        self._live.groups.check_room({spec.group_id: 1})
        entry.rollout.status = ROLLOUT_STATUS_PREPARING
        self._live.add_rollout(entry, queued=False)
        reply = StartRolloutResponse()
        shown = entry.shown(self._start(entry, request.worker_id, now))
        shown.compose_within(reply.rollout, self._engine.limits.message_bytes)
        if request.request_id:
            self._engine.remember("StartRollout", request, references(reply))
        await self._engine.commit()
        return reply

    async def start_attempt(self, request: StartAttemptRequest) -> StartAttemptResponse:
        """Claim one rollout by its id, regardless of its number of attempts."""
        self._engine.committer.admit()
        check_new_id("worker_id", request.worker_id, required=False)
        entry = await load_member(self._engine, request.rollout_id, inputs=True)
        if (answer := self._engine.requests.find("StartAttempt", request)) is not None:
            return await self._enqueue.replay(StartAttemptResponse.FromString(answer))
        self._check_not_paused()
        reply = StartAttemptResponse()
        shown = entry.shown(self._start(entry, request.worker_id, self._live.now()))
        shown.compose_within(reply.rollout, self._engine.limits.message_bytes)
        if request.request_id:
            self._engine.remember("StartAttempt", request, references(reply))
        await self._engine.commit()
        return reply


@lru_cache(maxsize=256)
def _checked_queues(names: tuple[str, ...]) -> frozenset[str]:
    """Return the names of task queues. Raises BatchTooLarge, FieldInvalid.

    Cached, because each long poll of a runner repeats its names, and checking a hundred would cost as much as the claim.
    """
    if len(names) > MAX_QUEUES:
        raise BatchTooLarge("queues", len(names), MAX_QUEUES)
    for i, name in enumerate(names):
        check_queue(f"queues[{i}]", name)
    return frozenset(names)
