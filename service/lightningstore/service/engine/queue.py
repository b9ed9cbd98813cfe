"""The queue: by priority, then first in first out, filtered by mode. Pure data structure."""

from __future__ import annotations

import heapq
from collections.abc import Collection

#: An item of a lane: the negative priority, the position, the rollout id. The smallest is claimed
#: first.
Item = tuple[int, int, str]


class RolloutQueue:
    """Ids of claimable rollouts, each at most once.

    A lane holds the rollouts of one mode in one heap, with all their priorities. A claim compares
    the heads of its lanes, so its cost is O(lanes + log n). A rollout that is removed out of order
    stays in its lane as a dead item until it reaches the head, or until dead items outnumber the
    others and the lanes are rebuilt.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, Item]] = {}  # id → lane, item
        self._lanes: dict[int, list[Item]] = {}  # mode → heap
        self._dead = 0
        #: Lanes that a rollout has entered since the polls were last served.
        self.fed: set[int] = set()

    def __len__(self) -> int:
        """Return the number of claimable rollouts."""
        return len(self._places)

    def __contains__(self, rollout_id: str) -> bool:
        """Return whether the rollout can be claimed."""
        return rollout_id in self._places

    def push(self, rollout_id: str, position: int, priority: int, mode: int) -> None:
        """Put a rollout at a position, regardless of its previous one."""
        item = (-priority, position, rollout_id)
        known = self._places.get(rollout_id)
        if known is not None:
            if known == (mode, item):
                return
            self.discard(rollout_id)
        self._places[rollout_id] = (mode, item)
        lane = self._lanes.get(mode)
        if lane is None:
            lane = self._lanes[mode] = []
        heapq.heappush(lane, item)
        self.fed.add(mode)

    def discard(self, rollout_id: str) -> None:
        """Remove a rollout, if it is in the queue."""
        if self._places.pop(rollout_id, None) is None:
            return
        self._dead += 1
        if self._dead > 64 + len(self._places):
            self._rebuild()

    def holds(self, mode: int) -> bool:
        """Return whether a rollout of this mode can be claimed."""
        return self._head(mode) is not None

    def first(self, modes: Collection[int]) -> str | None:
        """Return the first rollout of these modes (empty: any), or None."""
        first: Item | None = None
        for mode in modes or tuple(self._lanes):
            head = self._head(mode)
            if head is not None and (first is None or head < first):
                first = head
        return first[2] if first is not None else None

    def _head(self, mode: int) -> Item | None:
        """Return the first live item of a lane; drop dead items, and the lane when it is empty."""
        lane = self._lanes.get(mode)
        if lane is None:
            return None
        while lane:
            item = lane[0]
            known = self._places.get(item[2])
            if known is not None and known[1] is item:
                return item
            heapq.heappop(lane)
            self._dead -= 1
        del self._lanes[mode]
        return None

    def _rebuild(self) -> None:
        self._lanes, self._dead = {}, 0
        for mode, item in self._places.values():
            self._lanes.setdefault(mode, []).append(item)
        for lane in self._lanes.values():
            heapq.heapify(lane)
