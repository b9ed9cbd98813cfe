"""The consumers of one store: how they follow rollouts and groups, and which claims they hold back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lightningstore.service.engine.clock import Clock
from lightningstore.service.engine.committer import Committer
from lightningstore.service.engine.deadlines import Deadlines
from lightningstore.service.engine.groups import Groups
from lightningstore.service.engine.state import Entry, GroupState, State
from lightningstore.service.engine.subscription import Item, Subscription, Tally
from lightningstore.service.rules.consumers import delivery_ids
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.groups import has_begun
from lightningstore.service.rules.rows import ConsumerRow, DeliveryRow
from lightningstore.service.rules.times import NANOS, stamp
from lightningstore.v1.consumer_pb2 import (
    DELIVERY_STATE_DELIVERED,
    DELIVERY_STATE_SET_ASIDE,
    Consumer,
    Delivery,
)
from lightningstore.v1.rollout_pb2 import Rollout

#: Approximate bytes that a consumer, and an item of one, add to a commit.
CONSUMER_BYTES, DELIVERY_BYTES = 500, 200
#: A timer may fire this many nanoseconds early, because it counts in floating point.
EARLY_NS = 2000


class Consumers:
    """All consumers of one store, which are always in memory."""

    def __init__(
        self, clock: Clock, committer: Committer, deadlines: Deadlines, state: State, groups: Groups
    ) -> None:
        self._clock = clock
        self._committer = committer
        self._deadlines = deadlines
        self._state = state
        self._groups = groups
        self._named: dict[str, Subscription] = {}
        #: Those that follow what happens: all of them, and those that are being created.
        self._following: dict[Subscription, None] = {}
        #: Those that claims have to look at, or will have to.
        self._limited: dict[Subscription, None] = {}
        #: Members that match, of complete groups that are about to be reopened, by consumer. Valid until the next await.
        self._matching: dict[tuple[str, int], int] = {}

    def adopt(self, rows: Iterable[ConsumerRow], deliveries: Iterable[DeliveryRow]) -> None:
        """Install the consumers of a store that is opened. Their items are counted later."""
        by_key: dict[int, Subscription] = {}
        for row in rows:
            by_key[row.key] = sub = self._named[row.record.name] = Subscription(row)
            self.follow(sub)
            if row.record.max_outstanding:
                self._limited[sub] = None
                sub.maximum = row.record.max_outstanding
        for delivery in deliveries:
            if (owner := by_key.get(delivery.consumer_key)) is not None:
                self._install(owner, delivery)

    def _install(self, sub: Subscription, row: DeliveryRow) -> None:
        state: int = DELIVERY_STATE_DELIVERED
        if row.deadline_ns <= self._deadlines.time.now_ns():
            state = sub.waiting_state(row.record)
        item = Item(sub, row, state)
        sub.put(item)
        if state == DELIVERY_STATE_DELIVERED:
            self._arm(item)
        elif item.gone:
            self._remove(item)

    # Finding

    def __len__(self) -> int:
        """Return the number of consumers."""
        return len(self._named)

    def __iter__(self) -> Iterator[Subscription]:
        """Yield all of them, by name."""
        return iter([self._named[name] for name in sorted(self._named)])

    def get(self, name: str) -> Subscription | None:
        """Return a consumer by its name."""
        return self._named.get(name)

    def holds(self, sub: Subscription) -> bool:
        """Return whether this consumer exists, rather than a later one of the same name."""
        return self._named.get(sub.name) is sub

    @property
    def exist(self) -> bool:
        """Whether there is a consumer, or one is being created."""
        return bool(self._following)

    def wants(self, rollout: Rollout) -> bool:
        """Return whether a finished rollout has yet to be acknowledged by a consumer."""
        return any(sub.wants(rollout) for sub in self._named.values())

    # Changing

    def follow(self, sub: Subscription) -> None:
        """Have a consumer follow what happens, from now on."""
        self._following[sub] = None

    def forget(self, sub: Subscription) -> None:
        """Drop a consumer that is not created after all, or is deleted."""
        self._following.pop(sub, None)
        self._limited.pop(sub, None)
        sub.maximum = 0
        if sub.refused:
            self._state.queue.feed(sub)

    def add(self, sub: Subscription) -> None:
        """Add a consumer, whose items are counted. The key is assigned here."""
        self._state.counters.consumer_key += 1
        sub.key = self._state.counters.consumer_key
        self._named[sub.name] = sub
        self.save(sub)

    def remove(self, sub: Subscription) -> None:
        """Remove a consumer with its items."""
        del self._named[sub.name]
        self.forget(sub)
        changes = self._committer.changes
        for item in sub.items.values():
            self._deadlines.deliveries.discard(item)
            changes.deliveries.pop((sub.key, item.number), None)
        changes.consumers.pop(sub.name, None)
        changes.removed_consumers.append(sub.key)
        changes.size += CONSUMER_BYTES + DELIVERY_BYTES * len(sub.items)
        for waiter in sub.waiting:
            waiter.ready.set()

    def save(self, sub: Subscription) -> None:
        """Include a consumer in the next commit."""
        changes = self._committer.changes
        if sub.name not in changes.consumers:
            changes.size += CONSUMER_BYTES
        changes.consumers[sub.name] = sub.row()

    def change_settings(self, sub: Subscription, settings: Consumer) -> None:
        """Replace the settings of a consumer, except what claims keep to."""
        items = sub.replace(settings)
        sub.forget_stale()
        for item in items:
            sub.take(item)
            self._await_redelivery(item, item.record)
            sub.put(item)
            self._save(item)
        self.save(sub)

    # Items

    def until(self, seconds_ns: int) -> tuple[int, float]:
        """Return the time in that many nanoseconds, as store time and as monotonic seconds."""
        now_ns, now = self._deadlines.time.now_ns(), self._clock.monotonic()
        return now_ns + seconds_ns, now + seconds_ns / NANOS

    def deliver(
        self, sub: Subscription, record: Delivery, end_ns: int, until: tuple[int, float]
    ) -> Item:
        """Deliver an item, again or for the first time, until a time from `until`."""
        number = record.completion_number
        old = sub.items.get(number)
        if old is not None:
            sub.take(old)
        row = DeliveryRow(sub.key, number, until[0], False, end_ns, record)
        item = Item(sub, row, DELIVERY_STATE_DELIVERED)
        sub.put(item)
        if self._deadlines.deliveries.push(until[1], item):
            self._deadlines.earlier.set()
        changes = self._committer.changes
        changes.deliveries[sub.key, number] = row
        changes.size += DELIVERY_BYTES
        return item

    def extend(self, item: Item, seconds_ns: int) -> None:
        """Move the deadline of a delivery to that many nanoseconds from now."""
        item.owner.take(item)
        self._deadlines.deliveries.discard(item)
        item.deadline_ns = self._deadlines.time.now_ns() + seconds_ns
        item.state = DELIVERY_STATE_DELIVERED
        item.owner.put(item)
        self._arm(item)
        self._save(item)

    def release(self, item: Item, record: Delivery) -> None:
        """End a delivery whose item is to be delivered again, if it is not gone."""
        if item.gone:
            self._remove(item)
            return
        item.owner.take(item)
        self._deadlines.deliveries.discard(item)
        item.deadline_ns = 0
        self._await_redelivery(item, record)
        item.owner.put(item)
        self._save(item)

    def _await_redelivery(self, item: Item, record: Delivery) -> None:
        """Have an item that its owner does not hold wait for redelivery with this record, or set it aside."""
        item.record, item.state = record, item.owner.waiting_state(record)
        if item.state == DELIVERY_STATE_SET_ASIDE and not item.deadline_ns:
            # Its delivery was released: only who looks at what is set aside may end or release it.
            item.record = evolve(record, delivery_id=next(delivery_ids()))

    def end(self, item: Item) -> None:
        """Remove an item that was acknowledged, or is not delivered any more."""
        self._remove(item)
        item.owner.settle(item)

    def _remove(self, item: Item) -> None:
        item.owner.take(item)
        self._deadlines.deliveries.discard(item)
        changes, place = self._committer.changes, (item.owner.key, item.number)
        changes.deliveries.pop(place, None)
        changes.removed_deliveries.append(place)
        changes.size += DELIVERY_BYTES

    def _save(self, item: Item) -> None:
        changes = self._committer.changes
        changes.deliveries[item.owner.key, item.number] = item.row()
        changes.size += DELIVERY_BYTES

    def _arm(self, item: Item) -> None:
        self._deadlines.arm_delivery(item, self.seconds_left(item))

    def seconds_left(self, item: Item) -> float:
        """Return the seconds until the deadline of a delivery."""
        return (item.deadline_ns - self._deadlines.time.now_ns()) / NANOS

    def fill(self, item: Item, into: Delivery) -> None:
        """Fill a message with a delivery, its state and its deadline."""
        into.CopyFrom(item.record)
        into.state = item.state  # type: ignore[assignment]
        if item.state == DELIVERY_STATE_DELIVERED:
            left_ns = item.deadline_ns - self._deadlines.time.now_ns()
            into.ack_deadline_time.CopyFrom(stamp(self._clock.wall_ns() + left_ns))

    def _vanish(self, item: Item) -> None:
        """Deliver an item no more, because its rollout or group was reopened or removed."""
        if item.gone:
            return
        if item.state != DELIVERY_STATE_DELIVERED:
            self._remove(item)
            return
        item.owner.take(item)
        item.gone = True
        item.owner.put(item)
        self._save(item)

    def expire(self) -> None:
        """Have the items wait for redelivery whose deadline has passed, or set them aside."""
        now_ns = self._deadlines.time.now_ns()
        owners: dict[Subscription, None] = {}
        for item in self._deadlines.deliveries.pop_due(self._clock.monotonic()):
            if item.owner.items.get(item.number) is not item:
                continue
            if item.deadline_ns > now_ns + EARLY_NS:
                self._arm(item)
            elif item.gone:
                self._remove(item)
            else:
                item.owner.take(item)
                item.state = item.owner.waiting_state(item.record)
                item.owner.put(item)
                owners[item.owner] = None
        for sub in owners:
            self.wake(sub)

    # Waking pulls

    def wake(self, sub: Subscription, below: int | None = None) -> None:
        """Wake pulls that may find enough items, those that have waited longest first.

        `below` is the number that a pull waits for that has just found too few: only those that wait for fewer are woken.
        """
        left = sub.available
        for waiter, wanted in sub.waiting.items():
            if left <= 0:
                return
            if wanted <= left and (below is None or wanted < below):
                waiter.ready.set()
                left -= wanted

    def wake_all(self) -> None:
        """Wake pulls after a commit that may have finished something."""
        for sub in self._named.values():
            if sub.waiting:
                self.wake(sub)

    # Following rollouts and groups

    def change(self, old: Rollout | None, new: Rollout | None) -> None:
        """Follow a rollout that gets another record; None: it is new, or is removed."""
        for sub in self._following:
            before = sub.backlog
            sub.change(old, new)
            if sub.backlog > before and sub.waiting:
                self.wake(sub)  # an item that did not match does now
            number = old.completion_number if old is not None else 0
            if number and (new is None or new.completion_number != number) and not sub.by_group:
                self._lose(sub, number)

    def finished(self, record: Rollout) -> None:
        """Follow a rollout that has finished, and has its number."""
        for sub in self._following:
            sub.finished(record)

    def _lose(self, sub: Subscription, number: int) -> None:
        if (item := sub.items.get(number)) is not None:
            self._vanish(item)

    def create_group(self, group_id: str, members: Iterable[Entry]) -> None:
        """Follow a group that is created with these members."""
        for sub in self._following:
            if sub.by_group:
                sub.add_group(group_id, Tally())
        for entry in members:
            for sub in self._following:
                if sub.by_group:
                    sub.add_member(entry.rollout)

    def complete_group(self, group: GroupState) -> None:
        """Follow a group that completes."""
        for sub in self._following:
            if sub.by_group:
                sub.complete_group(group.record.group_id, group.record.completion_number)

    def reopen_group(self, group: GroupState, number: int) -> None:
        """Follow a group that is open again, and had this completion number."""
        group_id = group.record.group_id
        for sub in self._following:
            if sub.by_group:
                # Of a group that is not counted, `load_member` has counted the members just now.
                finished = 0 if group_id in sub.tallies else self._matching[group_id, sub.key]
                sub.reopen_group(group_id, number, finished)
                self._lose(sub, number)

    def remove_group(self, group: GroupState) -> None:
        """Follow a group that is removed."""
        number = group.record.completion_number
        for sub in self._following:
            if sub.by_group:
                sub.remove_group(group.record.group_id, number)
                self._lose(sub, number)

    def needs_members(self, group: GroupState) -> bool:
        """Return whether the members of a group must be known before one of them is reopened."""
        group_id = group.record.group_id
        return group.is_complete and any(
            sub.by_group and group_id not in sub.tallies for sub in self._following
        )

    def know_members(self, group_id: str, members: Sequence[Entry]) -> None:
        """Count the members of a group, whose records are in memory, until the next await."""
        self._matching.clear()
        records = [e.rollout for e in members if e.rollout.group_id == group_id]
        for sub in self._following:
            if sub.by_group:
                count = sum(1 for r in records if r.completion_number and sub.filter.matches(r))
                self._matching[group_id, sub.key] = count

    # Holding back claims

    def limit(self, sub: Subscription) -> bool:
        """Have the queue keep rollouts that match apart from others; return whether it did not so far."""
        if sub in self._limited:
            return False
        self._limited[sub] = None
        return True

    def limits_of(self, rollout: Rollout) -> tuple[Subscription, ...]:
        """Return the consumers that a claim of this rollout has to wait for when they are full."""
        if not self._limited or rollout.attempt_count:
            return ()
        group = self._groups.loaded.get(rollout.group_id) if rollout.group_id else None
        if group is not None and has_begun(group.record):
            return ()
        return tuple(
            sub
            for sub in self._limited
            if (group is not None or not sub.by_group) and sub.filter.allows(rollout)
        )

    @property
    def limits_claims(self) -> bool:
        """Whether some claims have to look at consumers."""
        return bool(self._limited)

    def feed(self) -> None:
        """Have the polls look again at what consumers held back that have room now."""
        for sub in self._limited:
            if sub.refused and not sub.is_full:
                sub.refused = False
                self._state.queue.feed(sub)
