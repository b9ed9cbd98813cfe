"""The task queues: by priority, then first in first out, filtered by queue and mode. Pure data structure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable, Iterator, Sequence
from itertools import count
from typing import Protocol

#: An item of a lane: the negative priority, the position, the rollout id. The smallest is claimed
#: first.
Item = tuple[int, int, str]
#: Name of a task queue, and a mode.
Key = tuple[str, int]


class Limit(Hashable, Protocol):
    """Something that may hold back claims: a consumer."""

    def refuses(self) -> bool:
        """Return whether a claim has to wait, and remember that one does."""


#: What may hold back claims of a rollout; nothing for most.
Limits = tuple[Limit, ...]

#: Dead items that a lane may have beyond the number of its live ones.
DEAD_ITEMS = 16


class _Lane:
    """The claimable rollouts of one queue, mode and limits, with all their priorities, in one heap.

    A rollout that is removed out of order stays in the heap as a dead item until it reaches the
    head, or until dead items outnumber the others.
    """

    __slots__ = ("heap", "key", "limits", "live")

    def __init__(self, key: Key, limits: Limits) -> None:
        self.key = key
        self.limits = limits
        self.heap: list[Item] = []
        #: Number of items that are not dead, never 0 in a lane that the queue keeps.
        self.live = 0

    def is_open(self) -> bool:
        """Return whether nothing holds back its rollouts."""
        return not any(limit.refuses() for limit in self.limits)


class RolloutQueue:
    """Ids of claimable rollouts, each at most once.

    A claim compares the heads of the lanes that it may take from, and only those that hold
    rollouts: a name without any costs one look-up. A lane is dropped when it is empty.

    Rollouts that a limit may hold back have lanes of their own. A claim passes over such a lane as a
    whole, however many rollouts it holds.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[_Lane, Item]] = {}
        self._lanes: dict[str, dict[int, _Lane]] = {}  # queue → mode → lane
        #: The lanes with limits: queue → mode and limits → lane.
        self._limited: dict[str, dict[tuple[int, Limits], _Lane]] = {}
        #: Lanes that rollouts were moved to while a claim takes some.
        self._moved: list[_Lane] | None = None
        #: Lanes that a rollout has entered since the polls were last served.
        self.fed: set[Key] = set()

    def __len__(self) -> int:
        """Return the number of claimable rollouts."""
        return len(self._places)

    def __contains__(self, rollout_id: str) -> bool:
        """Return whether the rollout can be claimed."""
        return rollout_id in self._places

    def push(
        self,
        rollout_id: str,
        position: int,
        priority: int,
        mode: int,
        queue: str,
        limits: Limits = (),
    ) -> None:
        """Put a rollout at a position of a queue, regardless of its previous one."""
        item = (-priority, position, rollout_id)
        known = self._places.get(rollout_id)
        if known is not None:
            lane = known[0]
            if known[1] == item and lane.key == (queue, mode) and lane.limits == limits:
                return
            self.discard(rollout_id)
        lane = self._limited_lane(queue, mode, limits) if limits else self._lane(queue, mode)
        if self._moved is not None:
            self._moved.append(lane)
        self._places[rollout_id] = (lane, item)
        heapq.heappush(lane.heap, item)
        lane.live += 1
        self.fed.add(lane.key)

    def _lane(self, queue: str, mode: int) -> _Lane:
        lanes = self._lanes.get(queue)
        if lanes is None:
            lanes = self._lanes[queue] = {}
        lane = lanes.get(mode)
        if lane is None:
            lane = lanes[mode] = _Lane((queue, mode), ())
        return lane

    def _limited_lane(self, queue: str, mode: int, limits: Limits) -> _Lane:
        lanes = self._limited.setdefault(queue, {})
        lane = lanes.get((mode, limits))
        if lane is None:
            lane = lanes[mode, limits] = _Lane((queue, mode), limits)
        return lane

    def _drop(self, lane: _Lane) -> None:
        """Drop an empty lane."""
        queue, mode = lane.key
        if lane.limits:
            del self._limited[queue][mode, lane.limits]
            if not self._limited[queue]:
                del self._limited[queue]
        else:
            del self._lanes[queue][mode]
            if not self._lanes[queue]:
                del self._lanes[queue]

    def discard(self, rollout_id: str) -> None:
        """Remove a rollout, if it is in the queue."""
        known = self._places.pop(rollout_id, None)
        if known is None:
            return
        lane, item = known
        lane.live -= 1
        if lane.live and lane.heap[0] is item:
            heapq.heappop(lane.heap)
        else:
            self._tidy(lane)

    def discard_all(self, rollout_ids: Sequence[str]) -> None:
        """Remove the rollouts that are in the queue: `discard` for many, without a search for the next head each time."""
        lanes: dict[_Lane, None] = {}
        for rollout_id in rollout_ids:
            known = self._places.pop(rollout_id, None)
            if known is not None:
                known[0].live -= 1
                lanes[known[0]] = None
        for lane in lanes:
            self._tidy(lane)

    def _tidy(self, lane: _Lane) -> None:
        """Drop a lane that is empty, or its dead items if they are many."""
        if not lane.live:
            self._drop(lane)
        elif len(lane.heap) > 2 * lane.live + DEAD_ITEMS:
            lane.heap = [item for item in lane.heap if self._is_live(item)]
            heapq.heapify(lane.heap)

    def holds(self, key: Key) -> bool:
        """Return whether a rollout of this queue and mode can be claimed."""
        queue, mode = key
        if mode in self._lanes.get(queue, ()):
            return True
        limited = self._limited.get(queue)
        return limited is not None and any(
            lane.is_open() for lane in limited.values() if lane.key[1] == mode
        )

    def feed_all(self) -> None:
        """Have the polls look at every lane that holds rollouts."""
        self.fed.update(lane.key for lanes in self._lanes.values() for lane in lanes.values())
        self.fed.update(lane.key for lanes in self._limited.values() for lane in lanes.values())

    def feed(self, limit: Limit) -> None:
        """Have the polls look at every lane that this limit may have held back."""
        for lanes in self._limited.values():
            self.fed.update(lane.key for lane in lanes.values() if limit in lane.limits)

    def ids(self) -> list[str]:
        """Return the ids of all claimable rollouts."""
        return list(self._places)

    def claimable(self, queues: Collection[str], modes: Collection[int]) -> Iterator[str]:
        """Yield rollouts of these queues and modes (empty: any) in the order in which they are claimed.

        The caller removes each before it takes the next one, and adds none meanwhile.
        """
        if self._limited:
            yield from self._unlimited(queues, modes)
            return
        lanes = self._chosen(queues, modes)
        if len(lanes) == 1:  # the usual case
            while lanes[0].live:
                yield self._head(lanes[0])[2]
            return
        # Numbered, because a dead item may equal the one that replaced it in another lane.
        heads = [(lane.heap[0], number, lane) for number, lane in enumerate(lanes)]
        heapq.heapify(heads)
        while heads:
            item, number, lane = heads[0]
            if self._is_live(item):
                yield item[2]
            if lane.live:
                heapq.heapreplace(heads, (self._head(lane), number, lane))
            else:
                heapq.heappop(heads)

    def _unlimited(self, queues: Collection[str], modes: Collection[int]) -> Iterator[str]:
        """Yield what `claimable` does, without what limits hold back.

        A claim may fill a consumer, and may free the other members of its group, which then move to another lane.
        """
        numbers = count()
        lanes = self._chosen(queues, modes)
        lanes += [
            lane
            for queue in queues
            for lane in self._limited.get(queue, {}).values()
            if not modes or lane.key[1] in modes
        ]
        heads = [(lane.heap[0], next(numbers), lane) for lane in lanes]
        heapq.heapify(heads)
        moved = self._moved = []
        try:
            while heads:
                item, _, lane = heapq.heappop(heads)
                if not lane.live or not lane.is_open():
                    continue
                if self._is_live(item):
                    yield item[2]
                for other in dict.fromkeys([lane, *moved]):
                    chosen = other.key[0] in queues and (not modes or other.key[1] in modes)
                    if other.live and chosen:
                        heapq.heappush(heads, (self._head(other), next(numbers), other))
                moved.clear()
        finally:
            self._moved = None

    def _chosen(self, queues: Collection[str], modes: Collection[int]) -> list[_Lane]:
        known = self._lanes
        found = [known[queue] for queue in queues if queue in known]
        if not modes:
            return [lane for lanes in found for lane in lanes.values()]
        return [lanes[mode] for lanes in found for mode in modes if mode in lanes]

    def _head(self, lane: _Lane) -> Item:
        """Return the first live item of a lane that has one; drop the dead items before it."""
        while not self._is_live(lane.heap[0]):
            heapq.heappop(lane.heap)
        return lane.heap[0]

    def _is_live(self, item: Item) -> bool:
        known = self._places.get(item[2])
        return known is not None and known[1] is item
