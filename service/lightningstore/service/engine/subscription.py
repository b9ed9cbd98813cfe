"""One consumer in memory: its deliveries, and how many items wait for it."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from lightningstore.service.rules.consumers import Filter, waiting_state
from lightningstore.service.rules.copies import copied
from lightningstore.service.rules.lifecycle import is_finished
from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow
from lightningstore.service.storage.places import Places
from lightningstore.v1.consumer_pb2 import (
    CONSUMER_UNIT_GROUP,
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_REDELIVERY,
    DELIVERY_STATE_SET_ASIDE,
    Consumer,
    Delivery,
    DeliveryState,
)
from lightningstore.v1.rollout_pb2 import Rollout

if TYPE_CHECKING:
    from lightningstore.service.engine.waiters import Waiter


#: The states of items.
STATES = (DELIVERY_STATE_DELIVERED, DELIVERY_STATE_REDELIVERY, DELIVERY_STATE_SET_ASIDE)


class Item:
    """An item that was delivered and is not acknowledged."""

    __slots__ = ("deadline_ns", "end_ns", "gone", "number", "owner", "record", "state")

    def __init__(self, owner: Subscription, row: DeliveryRow, state: int) -> None:
        self.owner = owner
        self.number = row.number
        #: Store time of the deadline; 0 if the delivery was released.
        self.deadline_ns = row.deadline_ns
        #: Whether it is not delivered again, because its rollout or group was reopened or removed.
        self.gone = row.gone
        self.end_ns = row.end_ns
        #: Replaced, never changed. Without the state and the deadline.
        self.record = row.record
        self.state = state

    def row(self) -> DeliveryRow:
        """Return it in its stored form."""
        return DeliveryRow(
            self.owner.key, self.number, self.deadline_ns, self.gone, self.end_ns, self.record
        )

    @property
    def has_ended(self) -> bool:
        """Whether its delivery was released, so that an acknowledgement comes too late."""
        return not self.deadline_ns and self.state != DELIVERY_STATE_SET_ASIDE


class Tally:
    """The members of a group that match a filter, as long as the group is not acknowledged."""

    __slots__ = ("claimed", "counted", "finished", "number")

    def __init__(self, finished: int = 0, number: int = 0) -> None:
        #: Those that were claimed and have not finished, and those that have finished.
        self.claimed, self.finished = 0, finished
        #: Completion number of the group, 0 while it is open.
        self.number = number
        #: Whether the members count as outstanding. Those of a group that is set aside do not.
        self.counted = True

    @property
    def weight(self) -> int:
        """Number of its members that were claimed."""
        return self.claimed + self.finished


class Subscription:
    """A consumer and its state in the engine. What `Consumers` calls here writes nothing."""

    def __init__(self, row: ConsumerRow) -> None:
        self.key = row.key
        self.created = row.created
        #: The settings. Replaced, never changed; its counters are not used.
        self.settings = row.record
        self.name = row.record.name
        self.filter = Filter.of(row.record.filter)
        self.by_group = row.record.unit == CONSUMER_UNIT_GROUP
        self.cursor = row.record.after_completion_number
        self.consumed = row.record.consumed_count
        self.dropped = row.record.dropped_count
        self.skipped = row.record.skipped_count
        #: Items by completion number, and by the id of their latest delivery.
        self.items: dict[int, Item] = {}
        self.by_id: dict[str, Item] = {}
        #: Completion numbers of the items by state.
        self._numbers: dict[int, Places[int]] = {state: Places() for state in STATES}
        #: One pull at a time reads, and moves the cursor.
        self.lock = asyncio.Lock()
        #: Waiting pulls, each with the number of items that it waits for.
        self.waiting: dict[Waiter, int] = {}
        #: Maximum number of outstanding rollouts that claims keep to; 0: none.
        self.maximum = 0
        #: Whether a claim was refused since it had room last.
        self.refused = False
        self._begin_to_count()

    def _begin_to_count(self) -> None:
        """Start with nothing counted."""
        #: Number of items by state, without those that are gone.
        self.states: Counter[int] = Counter()
        self.delivered = 0
        #: Items that wait for their first delivery, and rollouts that are claimed; by unit ROLLOUT the claimed ones only.
        self.backlog = self.claimed = 0
        #: Groups that are not acknowledged, with unit GROUP, and how many of their members are outstanding.
        self.tallies: dict[str, Tally] = {}
        self.members = 0
        #: Ids of the complete groups that wait for their first delivery, by completion number. A dict would not find its
        #: first one at once after others were removed.
        self._complete: OrderedDict[int, str] = OrderedDict()
        #: Numbers above the cursor of items that are known to be stale.
        self.stale: set[int] = set()
        #: Nothing that was not delivered matches up to this number.
        self.start = self.cursor
        #: While the items are counted: numbers up to the first, and above the second, are counted.
        self.counted: tuple[int, int] | None = None
        #: Completion numbers and ids of groups that changed since a read began.
        self.touched: set[int | str] = set()
        #: Numbers of items that match after a change since a read began. Replaced when another begins.
        self.matched: set[int] = set()

    # What it shows

    @property
    def outstanding(self) -> int:
        """Number of outstanding rollouts."""
        if self.by_group:
            return self.members
        waiting = self.states[DELIVERY_STATE_DELIVERED] + self.states[DELIVERY_STATE_REDELIVERY]
        return self.claimed + self.backlog - len(self.stale) + waiting

    @property
    def is_full(self) -> bool:
        """Whether claims have to wait for acknowledgements."""
        return 0 < self.maximum <= self.outstanding

    def refuses(self) -> bool:
        """Return whether a claim has to wait, and remember that one does."""
        if self.is_full:
            self.refused = True
            return True
        return False

    @property
    def available(self) -> int:
        """Number of items that a pull may find."""
        return self.states[DELIVERY_STATE_REDELIVERY] + self.backlog - len(self.stale)

    def row(self) -> ConsumerRow:
        """Return it in its stored form."""
        record = copied(self.settings)
        record.after_completion_number = self.cursor
        record.consumed_count, record.dropped_count = self.consumed, self.dropped
        record.skipped_count = self.skipped
        return ConsumerRow(self.key, self.created, record)

    def shown(self) -> Consumer:
        """Return it as an answer contains it, without the time of its oldest item."""
        record = self.row().record
        record.backlog_count, record.outstanding_count = self.backlog, self.outstanding
        record.delivered_count = self.delivered
        record.redelivery_count = self.states[DELIVERY_STATE_REDELIVERY]
        record.set_aside_count = self.states[DELIVERY_STATE_SET_ASIDE]
        return record

    def oldest(self) -> Item | None:
        """Return the oldest item that was delivered and is neither set aside nor gone."""
        items = self._ordered((DELIVERY_STATE_DELIVERED, DELIVERY_STATE_REDELIVERY))
        return next((item for item in items if not item.gone), None)

    def page(self, states: Collection[int], after: int, limit: int) -> list[Item]:
        """Return items in these states (empty: any) above a completion number, by that number."""
        return list(islice(self._ordered(states or STATES, after), limit))

    def _ordered(self, states: Iterable[int], after: int | None = None) -> Iterator[Item]:
        """Yield items in these states by completion number. No item changes meanwhile."""
        numbers = heapq.merge(*(self._numbers[state].each(after) for state in states))
        return map(self.items.__getitem__, numbers)

    def wants(self, rollout: Rollout) -> bool:
        """Return whether a finished rollout has yet to be acknowledged."""
        if self.by_group:
            tally = self.tallies.get(rollout.group_id)
            return tally is not None and (not tally.number or self._delivers(tally))
        number = rollout.completion_number
        item = self.items.get(number)
        if item is not None:
            return not item.gone
        return number > self.cursor and self.filter.matches(rollout)

    def _delivers(self, tally: Tally) -> bool:
        return tally.finished > 0 or tally.number in self.items

    # Deliveries

    def put(self, item: Item) -> None:
        """Add an item, or count another delivery or state of it."""
        self.items[item.number] = item
        self.by_id[item.record.delivery_id] = item
        self._numbers[item.state].add(item.number)
        self._count(item, 1)

    def take(self, item: Item) -> None:
        """Remove an item, for good or because its delivery or state changes."""
        del self.items[item.number]
        del self.by_id[item.record.delivery_id]
        self._numbers[item.state].remove(item.number)
        self._count(item, -1)

    def _count(self, item: Item, change: int) -> None:
        if item.state == DELIVERY_STATE_DELIVERED:
            self.delivered += change
        if item.gone:
            return
        self.states[item.state] += change
        tally = self.tallies.get(item.record.item_id) if self.by_group else None
        if tally is not None and tally.number == item.number:
            self._weigh(tally, counted=change < 0 or item.state != DELIVERY_STATE_SET_ASIDE)

    def _weigh(self, tally: Tally, *, counted: bool) -> None:
        if counted != tally.counted:
            tally.counted = counted
            self.members += tally.weight if counted else -tally.weight

    def note_stale(self, numbers: Iterable[int]) -> None:
        """Remember items that will be skipped. They hold no claims back: a pull may wait for more than there is room for."""
        for number in numbers:
            self.stale.add(number)
            if (tally := self._complete_tally(number)) is not None:
                self._weigh(tally, counted=False)

    def forget_stale(self) -> None:
        """Forget which items are stale: the settings have changed."""
        for number in self.stale:
            if (tally := self._complete_tally(number)) is not None:
                self._weigh(tally, counted=True)
        self.stale.clear()

    def _complete_tally(self, number: int) -> Tally | None:
        group_id = self._complete.get(number)
        return self.tallies.get(group_id) if group_id is not None else None

    def redeliverable(self, limit: int) -> list[Item]:
        """Return items that wait for redelivery, the lowest numbers first."""
        items = self._ordered((DELIVERY_STATE_REDELIVERY,))
        return list(islice((item for item in items if not item.gone), limit))

    def replace(self, settings: Consumer) -> list[Item]:
        """Replace the settings. Return the items that wait, and have another state with the new ones."""
        before, self.settings = self.settings, settings
        if settings.max_deliveries == before.max_deliveries:
            return []
        items = self._ordered((DELIVERY_STATE_REDELIVERY, DELIVERY_STATE_SET_ASIDE))
        return [item for item in items if self.waiting_state(item.record) != item.state]

    def waiting_state(self, record: Delivery) -> DeliveryState.ValueType:
        """Return the state of an item whose delivery has ended."""
        return waiting_state(self.settings, record.delivery_count)

    def settle(self, item: Item) -> None:
        """End an item: its group is acknowledged with it."""
        if self.by_group:
            tally = self.tallies.get(item.record.item_id)
            if tally is not None and tally.number == item.number:
                self._drop(item.record.item_id)

    def advance(self, through: int, last: int, passed: int) -> None:
        """Move the cursor past items that were delivered, skipped or do not match.

        `last` is the highest completion number there is, `passed` the number of rollouts that match.
        """
        self.cursor = through
        self.start = max(self.start, through)
        if self.stale:
            self.stale = {number for number in self.stale if number > through}
        if not self.by_group:
            # Damaged ones were counted, and are not found.
            self.backlog = self.backlog - passed if through < last else 0
            return
        while self._complete:
            number = next(iter(self._complete))
            if number > through:
                break
            group_id = self._complete.pop(number)
            tally = self.tallies[group_id]
            self.backlog -= tally.finished > 0
            if number not in self.items:
                self._drop(group_id)

    def _drop(self, group_id: str) -> None:
        tally = self.tallies.pop(group_id)
        if tally.counted:
            self.members -= tally.weight

    # Reading

    def begin_reading(self) -> None:
        """Note from now on what changes while items are read."""
        self.touched.clear()
        self.matched = set()

    def pass_over(self, through: int, matched: set[int]) -> None:
        """Remember that nothing matches up to a number, as was read since `matched` was the set of this name."""
        if matched is self.matched and self.counted is None:
            self.start = max(self.start, min(through, min(matched, default=through + 1) - 1))

    def _match(self, number: int) -> None:
        """Note that an item matches that may have been passed over."""
        self.start = min(self.start, number - 1)
        self.matched.add(number)

    # Following rollouts

    def _counts(self, number: int) -> bool:
        """Return whether an item is in the backlog if it matches."""
        if number <= self.cursor or number in self.items:
            return False
        return self.counted is None or number <= self.counted[0] or number > self.counted[1]

    def change(self, old: Rollout | None, new: Rollout | None) -> None:
        """Follow a rollout that gets another record; None: it is new, or is removed.

        A record that has just finished has no number yet: `finished` follows.
        """
        if self.by_group:
            self._change_member(old, -1)
            stays = old is not None and new is not None
            stays = stays and old.completion_number == new.completion_number  # type: ignore[union-attr]
            self._change_member(new, 1, has_finished=stays)
            return
        self.claimed += self.allows_claimed(new) - self.allows_claimed(old)
        number = old.completion_number if old is not None else 0
        if old is None or not number:
            return
        self.touched.add(number)
        if new is not None and new.completion_number == number:
            if self._counts(number):
                matches = self.filter.matches(new)
                self.backlog += matches - self.filter.matches(old)
                if matches:
                    self._match(number)
        elif number in self.items:
            pass  # `Consumers` drops the item
        elif self._counts(number):
            self.backlog -= self.filter.matches(old)
            self.stale.discard(number)

    def allows_claimed(self, record: Rollout | None) -> bool:
        """Return whether a rollout is claimed, has not finished, and matches."""
        if record is None or not record.attempt_count or is_finished(record):
            return False
        return self.filter.allows(record)

    def finished(self, record: Rollout) -> None:
        """Follow a rollout that has finished, and has its number."""
        if self.by_group:
            self._change_member(record, 1)
        elif self._counts(record.completion_number) and self.filter.matches(record):
            if not self.backlog and self.counted is None:
                self.start = record.completion_number - 1
            self.backlog += 1

    # Following groups

    def add_member(self, record: Rollout) -> None:
        """Count a member of a group that is created."""
        self._change_member(record, 1)

    def _change_member(
        self, record: Rollout | None, change: int, *, has_finished: bool = True
    ) -> None:
        if record is None or not record.group_id:
            return
        tally = self.tallies.get(record.group_id)
        if tally is None:
            self.touched.add(record.group_id)
            return
        claimed = change * self.allows_claimed(record)
        finished = 0
        if has_finished and record.completion_number and self.filter.matches(record):
            finished = change
        before = tally.finished > 0
        tally.claimed += claimed
        tally.finished += finished
        if tally.counted:
            self.members += claimed + finished
        if tally.number in self._complete:
            self.backlog += (tally.finished > 0) - before
            self.touched.add(tally.number)
            if tally.finished > 0:
                self._match(tally.number)

    def add_group(self, group_id: str, tally: Tally) -> None:
        """Count a group that is not acknowledged: a new one, or one that was counted or reopened."""
        self.tallies[group_id] = tally
        self.members += tally.weight
        if tally.number > self.cursor:
            self._complete[tally.number] = group_id
            self.backlog += tally.finished > 0
        elif (item := self.items.get(tally.number)) is not None and not item.gone:
            self._weigh(tally, counted=item.state != DELIVERY_STATE_SET_ASIDE)

    def end_count(self) -> None:
        """Count from now on what changes: all that there was has been counted."""
        self.counted = None
        self._complete = OrderedDict(sorted(self._complete.items()))

    def claim_members(self, claimed: Iterable[Rollout]) -> None:
        """Count the claimed members of all groups anew."""
        for tally in self.tallies.values():
            tally.claimed = 0
        for record in claimed:
            tally_of = self.tallies.get(record.group_id) if record.group_id else None
            if tally_of is not None and self.filter.allows(record):
                tally_of.claimed += 1
        self.members = sum(tally.weight for tally in self.tallies.values() if tally.counted)

    def complete_group(self, group_id: str, number: int) -> None:
        """Follow a group that completes."""
        tally = self.tallies.get(group_id)
        if tally is None:
            self.touched.add(group_id)
            return
        if not self._complete and self.counted is None:
            self.start = number - 1
        tally.number = number
        self._complete[number] = group_id
        self.backlog += tally.finished > 0

    def reopen_group(self, group_id: str, number: int, finished: int) -> None:
        """Follow a group that is open again; `finished` of its members have finished and match."""
        self.touched.update((group_id, number))
        tally = self.tallies.get(group_id)
        if tally is None:
            if self.counted is None:
                self.add_group(group_id, Tally(finished))
            return
        self._leave_backlog(tally)
        tally.number = 0
        self._weigh(tally, counted=True)

    def remove_group(self, group_id: str, number: int) -> None:
        """Follow a group that is removed."""
        self.touched.update((group_id, number))
        if (tally := self.tallies.get(group_id)) is not None:
            self._leave_backlog(tally)
            self._drop(group_id)

    def _leave_backlog(self, tally: Tally) -> None:
        if self._complete.pop(tally.number, None) is not None:
            self.backlog -= tally.finished > 0
            self.stale.discard(tally.number)
