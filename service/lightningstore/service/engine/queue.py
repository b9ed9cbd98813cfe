"""The task queues: by priority, then first in first out, filtered by queue and mode. Pure data structure."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator

#: An item of a lane: the negative priority, the position, the rollout id. The smallest is claimed
#: first.
Item = tuple[int, int, str]
#: Name of a task queue, and a mode.
Key = tuple[str, int]

#: Dead items that a lane may have beyond the number of its live ones.
DEAD_ITEMS = 16


class _Lane:
    """The claimable rollouts of one queue and mode, with all their priorities, in one heap.

    A rollout that is removed out of order stays in the heap as a dead item until it reaches the
    head, or until dead items outnumber the others.
    """

    __slots__ = ("heap", "key", "live")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.heap: list[Item] = []
        #: Number of items that are not dead, never 0 in a lane that the queue keeps.
        self.live = 0


class RolloutQueue:
    """Ids of claimable rollouts, each at most once.

    A claim compares the heads of the lanes that it may take from, and only those that hold
    rollouts: a name without any costs one look-up. A lane is dropped when it is empty.
    """

    def __init__(self) -> None:
        self._places: dict[str, tuple[_Lane, Item]] = {}
        self._lanes: dict[str, dict[int, _Lane]] = {}  # queue → mode → lane
        #: Lanes that a rollout has entered since the polls were last served.
        self.fed: set[Key] = set()

    def __len__(self) -> int:
        """Return the number of claimable rollouts."""
        return len(self._places)

    def __contains__(self, rollout_id: str) -> bool:
        """Return whether the rollout can be claimed."""
        return rollout_id in self._places

    def push(self, rollout_id: str, position: int, priority: int, mode: int, queue: str) -> None:
        """Put a rollout at a position of a queue, regardless of its previous one."""
        item = (-priority, position, rollout_id)
        known = self._places.get(rollout_id)
        if known is not None:
            if known[1] == item and known[0].key == (queue, mode):
                return
            self.discard(rollout_id)
        lanes = self._lanes.get(queue)
        if lanes is None:
            lanes = self._lanes[queue] = {}
        lane = lanes.get(mode)
        if lane is None:
            lane = lanes[mode] = _Lane((queue, mode))
        self._places[rollout_id] = (lane, item)
        heapq.heappush(lane.heap, item)
        lane.live += 1
        self.fed.add(lane.key)

    def discard(self, rollout_id: str) -> None:
        """Remove a rollout, if it is in the queue."""
        known = self._places.pop(rollout_id, None)
        if known is None:
            return
        lane, item = known
        lane.live -= 1
        if not lane.live:
            queue, mode = lane.key
            lanes = self._lanes[queue]
            del lanes[mode]
            if not lanes:
                del self._lanes[queue]
        elif lane.heap[0] is item:
            heapq.heappop(lane.heap)
        elif len(lane.heap) > 2 * lane.live + DEAD_ITEMS:
            lane.heap = [item for item in lane.heap if self._is_live(item)]
            heapq.heapify(lane.heap)

    def holds(self, key: Key) -> bool:
        """Return whether a rollout of this queue and mode can be claimed."""
        return key[1] in self._lanes.get(key[0], ())

    def feed_all(self) -> None:
        """Have the polls look at every lane that holds rollouts."""
        self.fed.update(lane.key for lanes in self._lanes.values() for lane in lanes.values())

    def claimable(self, queues: Collection[str], modes: Collection[int]) -> Iterator[str]:
        """Yield rollouts of these queues and modes (empty: any) in the order in which they are claimed.

        The caller removes each before it takes the next one, and adds none meanwhile.
        """
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
