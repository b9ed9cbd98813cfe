"""Long polls of the task queues, served first come, first served."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator
from operator import attrgetter

from lightningstore.service.engine.clock import Clock, Turn
from lightningstore.service.engine.live import Live
from lightningstore.service.engine.queue import Key
from lightningstore.service.rules.errors import RequestIdReused
from lightningstore.service.rules.ids import digest
from lightningstore.service.rules.rows import Shown
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest

#: The lane of a queue in which polls for any mode wait. It is no mode.
ANY_MODE = -1
#: Groups without polls that a lane may have beyond the number of the others.
DEAD_GROUPS = 16


class Poll:
    """A waiting DequeueRollouts. `ready` is set when it has its answer, or will get none."""

    __slots__ = (
        "claim",
        "claimed",
        "error",
        "group",
        "modes",
        "number",
        "queues",
        "ready",
        "request",
    )

    def __init__(
        self,
        request: DequeueRolloutsRequest,
        queues: frozenset[str],
        modes: frozenset[int],
        claim: Callable[[], list[Shown]],
    ) -> None:
        self.request = request
        #: The queues and modes (empty: any) that it may be served from.
        self.queues, self.modes = queues, modes
        #: Claims what can be claimed now.
        self.claim = claim
        #: Sequence number of the poll: the lowest one is served first.
        self.number = 0
        #: The group that it waits in; None when it does not wait any more.
        self.group: _Group | None = None
        self.ready = asyncio.Event()
        #: The claimed rollouts.
        self.claimed: list[Shown] = []
        self.error: Exception | None = None


class _Group:
    """Waiting polls of the same queues and modes, in order of arrival. Never empty while it waits.

    Lanes refer to groups, not to polls: thousands of runners that name the same hundred queues take
    a hundred references in all.
    """

    __slots__ = ("modes", "polls", "queues")

    def __init__(self, poll: Poll) -> None:
        self.queues, self.modes = poll.queues, poll.modes
        self.polls: dict[Poll, None] = {}

    def lanes(self) -> Iterator[Key]:
        """Yield the lanes in which its polls wait."""
        for queue in self.queues:
            for mode in self.modes or (ANY_MODE,):
                yield queue, mode

    def first(self) -> Poll:
        """Return the poll that has waited longest."""
        return next(iter(self.polls))


class _Lane:
    """The groups that wait for rollouts of one queue and mode."""

    __slots__ = ("heap", "live")

    def __init__(self) -> None:
        #: Groups by the number of their first poll, which was lower or equal when they came in.
        self.heap: list[tuple[int, int, _Group]] = []
        #: Number of groups in the heap that have polls, never 0.
        self.live = 0

    def first(self) -> Poll:
        """Return the poll that has waited longest."""
        while True:
            number, tie, group = self.heap[0]
            if not group.polls:
                heapq.heappop(self.heap)
                continue
            poll = group.first()
            if poll.number == number:
                return poll
            heapq.heapreplace(self.heap, (poll.number, tie, group))


class Polls:
    """All long polls of one store."""

    def __init__(self, live: Live, serve_rest: Callable[[], None]) -> None:
        self._live = live
        #: Called in a later iteration of the event loop if `serve` did not finish.
        self._serve_rest = serve_rest
        self._polls: dict[Poll, None] = {}
        self._groups: dict[tuple[frozenset[str], frozenset[int]], _Group] = {}
        #: The groups by the lanes that can serve them. Unless claims are paused, no rollout can be
        #: claimed in a lane with waiting polls, except those that have just entered it.
        self._lanes: dict[Key, _Lane] = {}
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
        self._enter(poll)
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

    def _enter(self, poll: Poll) -> None:
        self._count += 1
        poll.number = self._count
        self._polls[poll] = None
        interest = poll.queues, poll.modes
        group = self._groups.get(interest)
        if group is None:
            group = self._groups[interest] = _Group(poll)
            for key in group.lanes():
                lane = self._lanes.get(key)
                if lane is None:
                    lane = self._lanes[key] = _Lane()
                heapq.heappush(lane.heap, (poll.number, poll.number, group))
                lane.live += 1
        group.polls[poll] = None
        poll.group = group

    def _leave(self, poll: Poll) -> None:
        """End the wait of a poll, if it is still waiting."""
        group, poll.group = poll.group, None
        if group is None:
            return
        del self._polls[poll]
        del group.polls[poll]
        if group.polls:
            return
        del self._groups[group.queues, group.modes]
        for key in group.lanes():
            lane = self._lanes[key]
            lane.live -= 1
            if not lane.live:
                del self._lanes[key]
            elif len(lane.heap) > 2 * lane.live + DEAD_GROUPS:
                lane.heap = [place for place in lane.heap if place[2].polls]
                heapq.heapify(lane.heap)

    def serve(self) -> None:
        """Claim for waiting polls, first come, first served.

        Examines only lanes that rollouts have entered since the last call, so the cost depends on
        what can be claimed, not on the number of waiting polls. If many are served, other tasks run
        in between.
        """
        if self._live.groups.begun:
            self._live.regroup()
        if self._live.consumers.limits_claims:
            self._live.consumers.feed()
        fed = self._live.state.queue.fed
        if not self._polls or self._live.paused:
            fed.clear()  # whoever resumes claims feeds all lanes again
        if not fed:
            return
        turn = Turn()
        # The numbers of the first polls of these lanes, which only rise.
        heads = sorted((0, key) for key in fed)
        while heads:
            if turn.over():
                if not self._serving_later:
                    self._serving_later = True
                    asyncio.get_running_loop().call_soon(self._go_on)
                return
            number, key = heads[0]
            poll = self._first(key)
            if poll is None:
                fed.discard(key)
                heapq.heappop(heads)
            elif poll.number > number:
                heapq.heapreplace(heads, (poll.number, key))
            else:
                self._serve(poll)

    def _serve(self, poll: Poll) -> None:
        """Claim for a poll, and for those that repeat its call."""
        claimed = poll.claim()
        for same in self._named.get(poll.request.request_id) or [poll]:
            if same is poll or digest(same.request) == digest(poll.request):
                same.claimed = claimed
            else:
                same.error = RequestIdReused(poll.request.request_id)
            self._leave(same)
            same.ready.set()

    def _go_on(self) -> None:
        self._serving_later = False
        self._serve_rest()

    def _first(self, key: Key) -> Poll | None:
        """Return the poll that has waited longest for a lane; None if there is none, or no rollout for it."""
        if not self._live.state.queue.holds(key):
            return None
        lanes = (self._lanes.get(key), self._lanes.get((key[0], ANY_MODE)))
        waiting = [lane.first() for lane in lanes if lane is not None]
        return min(waiting, key=attrgetter("number"), default=None)

    def end(self, error: Exception | None) -> None:
        """End all polls, with an error or with an empty answer."""
        for poll in self._polls:
            poll.error, poll.group = error, None
            poll.ready.set()
        self._polls.clear()
        self._groups.clear()
        self._lanes.clear()
