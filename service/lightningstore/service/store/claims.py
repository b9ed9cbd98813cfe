"""Claims: DequeueRollouts with its long polls, StartRollout, StartAttempt."""

from __future__ import annotations

import asyncio

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service import lifecycle
from lightningstore.service.clock import Clock, Turn
from lightningstore.service.errors import (
    BatchTooLarge,
    FieldInvalid,
    RequestIdReused,
    RolloutExists,
)
from lightningstore.service.limits import Limits
from lightningstore.service.records import (
    check_duration,
    check_enum,
    check_id,
    digest,
    new_id,
    seconds,
)
from lightningstore.service.state import AttemptState, Entry
from lightningstore.service.storage.base import Storage
from lightningstore.service.store.enqueue import references
from lightningstore.service.store.rollouts import RolloutOperations
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_PREPARING, Attempt
from lightningstore.v1.claim_pb2 import (
    DequeueRolloutsRequest,
    DequeueRolloutsResponse,
    StartAttemptRequest,
    StartAttemptResponse,
    StartRolloutRequest,
    StartRolloutResponse,
)
from lightningstore.v1.rollout_pb2 import ROLLOUT_STATUS_PREPARING, RolloutMode

#: Most rollouts that one call claims: so many hold the event loop for about 20 ms.
CLAIMED_AT_ONCE = 1000
#: What an attempt that is made adds to an answer, roughly.
ATTEMPT_BYTES = 512
#: A long poll answers this many seconds before the call's deadline.
DEADLINE_MARGIN = 0.2
#: The lanes of a claim that names no mode.
ALL_MODES = frozenset(RolloutMode.values())
#: Share of its wait by which a long poll may end early, so that many do not come back at once.
WAIT_JITTER = 0.05


class Poll:
    """A DequeueRollouts that waits. `ready` is set when it has its answer, or none to come."""

    __slots__ = ("error", "lanes", "modes", "number", "ready", "reply", "request")

    def __init__(self, request: DequeueRolloutsRequest, modes: frozenset[int]) -> None:
        """Take the call."""
        self.request = request
        self.modes = modes
        #: The lanes of the queue that it may be served from.
        self.lanes = modes or ALL_MODES
        #: Counts the polls: the lowest number is served first.
        self.number = 0
        self.ready = asyncio.Event()
        self.reply: DequeueRolloutsResponse | None = None
        self.error: Exception | None = None


class ClaimOperations(RolloutOperations):
    """The calls of claim.proto."""

    def __init__(self, storage: Storage, clock: Clock, limits: Limits) -> None:
        """Take the parts; nobody waits yet."""
        super().__init__(storage, clock, limits)
        self.polls: dict[Poll, None] = {}
        #: The same by the lanes that they may be served from, in each first come first served. No rollout can
        #: be claimed in a lane for which somebody waits, except those that have just come.
        self._waiting: dict[int, dict[Poll, None]] = {}
        self._poll_count = 0
        self._serving_later = False
        #: Polls by their request ids: of each more than one, where a caller has repeated its call.
        self._named: dict[str, list[Poll]] = {}

    async def dequeue_rollouts(
        self, request: DequeueRolloutsRequest, time_remaining: float | None = None
    ) -> DequeueRolloutsResponse:
        """Claim up to `limit` rollouts, waiting for one if asked to.

        `time_remaining` is the time in seconds until the call's deadline, None without one.
        """
        self.committer.admit()
        modes = self._check_dequeue(request)
        if (answer := self.requests.find("DequeueRollouts", request)) is not None:
            return await self.replay(DequeueRolloutsResponse.FromString(answer))
        reply = self._claim(request, modes)
        wait = seconds(request.wait)
        if not reply.rollouts and wait and request.limit and not self.closing:
            if time_remaining is not None:
                wait = min(wait, time_remaining - DEADLINE_MARGIN)
            failures = self.committer.failures
            reply = await self._poll(Poll(request, modes), wait)
            await self.barrier_since(failures)  # whose operation served it has sealed it
        if not reply.rollouts and request.worker_id:
            self.workforce.asked(request.worker_id, self.now(), in_vain=True)
        await self.commit()
        return reply

    def _check_dequeue(self, request: DequeueRolloutsRequest) -> frozenset[int]:
        if request.limit < 0:
            raise FieldInvalid("limit", "must not be negative")
        if request.limit > self.limits.batch_items:
            raise BatchTooLarge("limit", request.limit, self.limits.batch_items)
        for i, mode in enumerate(request.modes):
            check_enum(f"modes[{i}]", RolloutMode, mode, unspecified=True)
        check_id("worker_id", request.worker_id, required=False)
        if request.HasField("wait"):
            check_duration("wait", request.wait)
        return frozenset(request.modes)

    async def _poll(self, poll: Poll, wait: float) -> DequeueRolloutsResponse:
        """Wait until the poll is served, the time is over or the store closes."""
        jitter = 1 - WAIT_JITTER * self.dice()
        until = self.clock.monotonic() + wait * jitter
        request_id = poll.request.request_id
        self._poll_count += 1
        poll.number = self._poll_count
        self.polls[poll] = None
        for lane in poll.lanes:
            self._waiting.setdefault(lane, {})[poll] = None
        if request_id:
            self._named.setdefault(request_id, []).append(poll)
        try:
            while not poll.ready.is_set():
                await self.clock.wait(poll.ready, until)
        finally:
            self._leave(poll)
            if request_id:
                self._named[request_id].remove(poll)
                if not self._named[request_id]:
                    del self._named[request_id]
        if poll.error is not None:
            raise poll.error
        return poll.reply or DequeueRolloutsResponse()

    def _leave(self, poll: Poll) -> None:
        """Have a poll wait no longer, if it still does."""
        if self.polls.pop(poll, poll) is None:
            for lane in poll.lanes:
                del self._waiting[lane][poll]

    def serve_polls(self) -> None:
        """Claim for those who wait, first come first served: the one place that does.

        Looks only at lanes that rollouts have entered since the last time, so the cost follows what can be
        claimed and not who waits. Where many are served, others get the loop in between.
        """
        fed = self.state.queue.fed
        turn = Turn()
        while fed and self.polls:
            if turn.over():
                if not self._serving_later:
                    self._serving_later = True
                    asyncio.get_running_loop().call_soon(self._serve_rest)
                return
            poll = self._first_poll(fed)
            if poll is None:
                break
            reply = self._claim(poll.request, poll.modes)
            for same in self._named.get(poll.request.request_id) or [poll]:
                if same is poll or digest(same.request) == digest(poll.request):
                    same.reply = reply
                else:
                    same.error = RequestIdReused(poll.request.request_id)
                self._leave(same)
                same.ready.set()
        fed.clear()

    def _serve_rest(self) -> None:
        """Go on where `serve_polls` has let others have the loop."""
        self._serving_later = False
        if self.committer.failure is None:
            self.serve_polls()
            self.seal_changes()

    def _first_poll(self, fed: set[int]) -> Poll | None:
        """Return who has waited longest for one of these lanes; drops lanes that can serve nobody."""
        first: Poll | None = None
        for lane in tuple(fed):
            waiting = self._waiting.get(lane)
            if not waiting or not self.state.queue.holds(lane):
                fed.discard(lane)
                continue
            poll = next(iter(waiting))
            if first is None or poll.number < first.number:
                first = poll
        return first

    def end_polls(self, error: Exception | None) -> None:
        """Let all long polls go, with an error or with an empty answer."""
        for poll in self.polls:
            poll.error = error
            poll.ready.set()
        self.polls.clear()
        self._waiting.clear()

    def _claim(
        self, request: DequeueRolloutsRequest, modes: frozenset[int]
    ) -> DequeueRolloutsResponse:
        """Claim what is there now."""
        reply = DequeueRolloutsResponse()
        now, room = self.now(), self.limits.answer_bytes
        while len(reply.rollouts) < min(request.limit, CLAIMED_AT_ONCE):
            rollout_id = self.state.queue.first(modes)
            if rollout_id is None:
                break
            entry = self.state.entries[rollout_id]
            room -= entry.shown().size() + ATTEMPT_BYTES
            if reply.rollouts and room < 0:
                break
            attempt = self._start(entry, request.worker_id, now)
            shown = entry.shown(attempt)
            shown.compose_within(reply.rollouts.add(), self.limits.message_bytes)
        if not reply.rollouts:
            return reply
        if request.worker_id:
            self.workforce.asked(request.worker_id, now, in_vain=False)
        if request.request_id:
            self.remember("DequeueRollouts", request, references(reply))
        return reply

    def _start(self, entry: Entry, worker_id: str, now: Timestamp) -> AttemptState:
        """Give the rollout a new attempt. Raises TransitionNotAllowed."""
        resources_id = entry.rollout.resources_id
        attempt = Attempt()  # keywords cost three times as much as assignments
        attempt.rollout_id = entry.rollout.rollout_id
        attempt.attempt_id = self._attempt_id(entry)
        attempt.sequence_number = entry.rollout.attempt_count + 1
        attempt.status = ATTEMPT_STATUS_PREPARING
        attempt.start_time.CopyFrom(now)
        if worker_id:
            attempt.worker_id = worker_id
        if resources_id:
            attempt.resources_id = resources_id
            attempt.resources_version = self.state.resources.get(resources_id, (0, 0))[0]
        transition = lifecycle.claim(entry.rollout, attempt)
        # The rollout's record first: deadlines are read off the state that it is in.
        self.apply(entry, None, transition, now)
        return self.new_attempt(entry, attempt, now)

    @staticmethod
    def _attempt_id(entry: Entry) -> str:
        while (attempt_id := new_id("at-", 8)) in entry.attempts:
            pass
        return attempt_id

    async def start_rollout(self, request: StartRolloutRequest) -> StartRolloutResponse:
        """Make a rollout and claim it; it never enters the queue."""
        self.committer.admit()
        spec = request.rollout
        check_id("worker_id", request.worker_id, required=False)
        rollout_id = spec.rollout_id or self.free_id()
        await self.load_many([rollout_id])
        if (answer := self.requests.find("StartRollout", request)) is not None:
            return await self.replay(StartRolloutResponse.FromString(answer))
        now = self.now()
        entry = self.new_entry("rollout", spec, now, rollout_id)
        if entry.rollout.rollout_id in self.state.entries:
            if spec.rollout_id:
                raise RolloutExists(spec.rollout_id)
            entry.rollout.rollout_id = self.free_id()
        entry.rollout.status = ROLLOUT_STATUS_PREPARING
        self.add_rollout(entry, queued=False)
        reply = StartRolloutResponse()
        shown = entry.shown(self._start(entry, request.worker_id, now))
        shown.compose_within(reply.rollout, self.limits.message_bytes)
        if request.request_id:
            self.remember("StartRollout", request, references(reply))
        await self.commit()
        return reply

    async def start_attempt(self, request: StartAttemptRequest) -> StartAttemptResponse:
        """Claim one rollout by its id, whatever its number of attempts."""
        self.committer.admit()
        check_id("worker_id", request.worker_id, required=False)
        entry = await self.load(request.rollout_id)
        if (answer := self.requests.find("StartAttempt", request)) is not None:
            return await self.replay(StartAttemptResponse.FromString(answer))
        reply = StartAttemptResponse()
        shown = entry.shown(self._start(entry, request.worker_id, self.now()))
        shown.compose_within(reply.rollout, self.limits.message_bytes)
        if request.request_id:
            self.remember("StartAttempt", request, references(reply))
        await self.commit()
        return reply
