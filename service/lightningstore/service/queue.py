"""The queue: by priority, then first in first out, filtered by mode. Pure data structure."""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Collection


class RolloutQueue:
    """Rollout ids that wait to be claimed, each at most once.

    A lane is a heap of positions for one priority and mode. What leaves out of turn stays in its lane as
    a dead entry until it surfaces, or until dead ones outnumber the living and the lane is rebuilt.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._places: dict[str, tuple[int, int, int]] = {}  # id → position, priority, mode
        self._lanes: dict[int, dict[int, list[tuple[int, str]]]] = {}  # -priority → mode → heap
        self._priorities: list[int] = []  # the keys of _lanes, ascending: highest priority first
        self._dead = 0

    def __len__(self) -> int:
        """Return how many can be claimed."""
        return len(self._places)

    def __contains__(self, rollout_id: str) -> bool:
        """Tell whether the rollout can be claimed."""
        return rollout_id in self._places

    def push(self, rollout_id: str, position: int, priority: int, mode: int) -> None:
        """Put a rollout in its place, from wherever it was before."""
        place = (position, priority, mode)
        if self._places.get(rollout_id) == place:
            return
        self.discard(rollout_id)
        self._places[rollout_id] = place
        lanes = self._lanes.get(-priority)
        if lanes is None:
            lanes = self._lanes[-priority] = {}
            bisect.insort(self._priorities, -priority)
        heapq.heappush(lanes.setdefault(mode, []), (position, rollout_id))

    def discard(self, rollout_id: str) -> None:
        """Take a rollout out, if it is in."""
        if self._places.pop(rollout_id, None) is None:
            return
        self._dead += 1
        if self._dead > 64 + len(self._places):
            self._rebuild()

    def pop(self, modes: Collection[int]) -> str | None:
        """Take out and return the first rollout of these modes (empty: any), None if there is none."""
        for priority in list(self._priorities):
            lanes = self._lanes[priority]
            first: tuple[int, str] | None = None
            first_mode = 0
            for mode in list(lanes):
                if modes and mode not in modes:
                    continue
                head = self._head(lanes, priority, mode)
                if head is not None and (first is None or head < first):
                    first, first_mode = head, mode
            if first is not None:
                heapq.heappop(lanes[first_mode])
                del self._places[first[1]]
                return first[1]
            if not lanes:
                del self._lanes[priority]
                self._priorities.remove(priority)
        return None

    def _head(
        self, lanes: dict[int, list[tuple[int, str]]], priority: int, mode: int
    ) -> tuple[int, str] | None:
        """Return the first living entry of a lane; drops dead ones, and the lane when it is empty."""
        lane = lanes[mode]
        while lane:
            position, rollout_id = lane[0]
            if self._places.get(rollout_id) == (position, -priority, mode):
                return lane[0]
            heapq.heappop(lane)
            self._dead -= 1
        del lanes[mode]
        return None

    def _rebuild(self) -> None:
        places, self._places, self._lanes, self._priorities = self._places, {}, {}, []
        self._dead = 0
        for rollout_id, (position, priority, mode) in places.items():
            self.push(rollout_id, position, priority, mode)
