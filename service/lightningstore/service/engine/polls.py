"""Long polls of the queue, served first come, first served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from lightningstore.service.engine.clock import Clock, Turn
from lightningstore.service.engine.live import Live
from lightningstore.service.rules.errors import RequestIdReused
from lightningstore.service.rules.ids import digest
from lightningstore.service.rules.rows import Shown
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.rollout_pb2 import RolloutMode

#: The lanes of a claim that names no mode.
ALL_MODES = frozenset(RolloutMode.values())


class Poll:
    """A waiting DequeueRollouts. `ready` is set when it has its answer, or will get none."""

    __slots__ = ("claim", "claimed", "error", "lanes", "number", "ready", "request")

    def __init__(
        self,
        request: DequeueRolloutsRequest,
        modes: frozenset[int],
        claim: Callable[[], list[Shown]],
    ) -> None:
        self.request = request
        #: The lanes of the queue that it may be served from.
        self.lanes = modes or ALL_MODES
        #: Claims what can be claimed now.
        self.claim = claim
        #: Sequence number of the poll: the lowest one is served first.
        self.number = 0
        self.ready = asyncio.Event()
        #: The claimed rollouts.
        self.claimed: list[Shown] = []
        self.error: Exception | None = None


class Polls:
    """All long polls of one store."""

    def __init__(self, live: Live, serve_rest: Callable[[], None]) -> None:
        self._live = live
        #: Called in a later iteration of the event loop if `serve` did not finish.
        self._serve_rest = serve_rest
        self._polls: dict[Poll, None] = {}
        #: The polls by the lanes that can serve them, in order of arrival. No rollout can be
        #: claimed in a lane with waiting polls, except those that have just entered it.
        self._waiting: dict[int, dict[Poll, None]] = {}
        self._count = 0
        self._serving_later = False
        #: Polls by their request ids: several if a caller has repeated its call.
        self._named: dict[str, list[Poll]] = {}

    def __len__(self) -> int:
        """Return the number of waiting polls."""
        return len(self._polls)

    async def wait(self, poll: Poll, clock: Clock, until: float) -> list[Shown]:
        """Return the claims when the poll is served or ended, or the clock reaches `until`.

        Raises:
            StoreError: The error that was passed to `end`.
        """
        request_id = poll.request.request_id
        self._count += 1
        poll.number = self._count
        self._polls[poll] = None
        for lane in poll.lanes:
            self._waiting.setdefault(lane, {})[poll] = None
        if request_id:
            self._named.setdefault(request_id, []).append(poll)
        try:
            while not poll.ready.is_set():
                await clock.wait(poll.ready, until)
        finally:
            self._leave(poll)
            if request_id:
                self._named[request_id].remove(poll)
                if not self._named[request_id]:
                    del self._named[request_id]
        if poll.error is not None:
            raise poll.error
        return poll.claimed

    def _leave(self, poll: Poll) -> None:
        """End the wait of a poll, if it is still waiting."""
        if self._polls.pop(poll, poll) is None:
            for lane in poll.lanes:
                del self._waiting[lane][poll]

    def serve(self) -> None:
        """Claim for waiting polls, first come, first served.

        Examines only lanes that rollouts have entered since the last call, so the cost depends on
        what can be claimed, not on the number of waiting polls. If many are served, other tasks run
        in between.
        """
        fed = self._live.state.queue.fed
        turn = Turn()
        while fed and self._polls:
            if turn.over():
                if not self._serving_later:
                    self._serving_later = True
                    asyncio.get_running_loop().call_soon(self._go_on)
                return
            poll = self._first(fed)
            if poll is None:
                break
            claimed = poll.claim()
            for same in self._named.get(poll.request.request_id) or [poll]:
                if same is poll or digest(same.request) == digest(poll.request):
                    same.claimed = claimed
                else:
                    same.error = RequestIdReused(poll.request.request_id)
                self._leave(same)
                same.ready.set()
        fed.clear()

    def _go_on(self) -> None:
        self._serving_later = False
        self._serve_rest()

    def _first(self, fed: set[int]) -> Poll | None:
        """Return the poll that has waited longest for one of these lanes.

        Drops lanes that can serve none.
        """
        first: Poll | None = None
        for lane in tuple(fed):
            waiting = self._waiting.get(lane)
            if not waiting or not self._live.state.queue.holds(lane):
                fed.discard(lane)
                continue
            poll = next(iter(waiting))
            if first is None or poll.number < first.number:
                first = poll
        return first

    def end(self, error: Exception | None) -> None:
        """End all polls, with an error or with an empty answer."""
        for poll in self._polls:
            poll.error = error
            poll.ready.set()
        self._polls.clear()
        self._waiting.clear()
