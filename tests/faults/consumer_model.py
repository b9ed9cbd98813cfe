"""What docs/training-control.md says of consumers, found anew from all rollouts and groups. Slow and obvious."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any


class Refused(Exception):
    """The store has to answer FAILED_PRECONDITION or ALREADY_EXISTS."""


@dataclass
class Item:
    """What was delivered and is not acknowledged. `deadline`: of its latest delivery; None once that is released."""

    delivery_id: str
    count: int
    deadline: float | None


@dataclass
class Consumer:
    """A subscription. `cursor`: nothing at or below it is delivered for the first time."""

    by_group: bool
    statuses: Collection[str]
    queues: Collection[str]
    cursor: int
    ack_seconds: float
    max_lag: int | None
    delivers_stale: bool
    max_outstanding: int
    max_deliveries: int
    items: dict[int, Item] = field(default_factory=dict)
    consumed: int = 0
    dropped: int = 0
    skipped: int = 0

    # What there is. `model` has the rollouts, the groups and the time.

    def numbers(self, model: Any) -> dict[int, str]:
        """Return the ids of all that is complete, by completion number."""
        every = model.groups if self.by_group else model.rollouts
        return {each.number: name for name, each in every.items() if each.number}

    def members(self, model: Any, name: str) -> list[Any]:
        """Return the rollouts of an item."""
        return model.members(name) if self.by_group else [model.rollouts[name]]  # type: ignore[no-any-return]

    def allows(self, rollout: Any) -> bool:
        """Return whether a rollout matches once it has finished with the right status."""
        return not self.queues or rollout.queue in self.queues

    def matches(self, rollout: Any) -> bool:
        """Return whether a rollout has finished and matches."""
        right = not self.statuses or rollout.status in self.statuses
        return bool(rollout.finished and right and self.allows(rollout))

    def is_claimed(self, rollout: Any) -> bool:
        """Return whether a rollout is claimed, has not finished, and matches."""
        return bool(rollout.attempts and not rollout.finished and self.allows(rollout))

    def waiting(self, model: Any) -> list[int]:
        """Return the numbers of the items that wait for their first delivery."""
        return [
            number
            for number, name in sorted(self.numbers(model).items())
            if number > self.cursor and any(map(self.matches, self.members(model, name)))
        ]

    def state(self, model: Any, item: Item) -> str:
        """Return the state of an item that was delivered."""
        if item.deadline is not None and item.deadline > model.now:
            return "delivered"
        aside = 0 < self.max_deliveries <= item.count
        return "set_aside" if aside else "redelivery"

    def delivered(self, model: Any) -> dict[int, Item]:
        """Return the items that were delivered. Of one that is reopened or removed, only the deadline still runs."""
        numbers = self.numbers(model)
        self.items = {
            number: item
            for number, item in sorted(self.items.items())
            if number in numbers or self.state(model, item) == "delivered"
        }
        return self.items

    def in_state(self, model: Any, *states: str) -> list[int]:
        """Return the numbers of items in these states, without those that were reopened or removed."""
        numbers, items = self.numbers(model), self.delivered(model)
        return [
            n for n, item in items.items() if n in numbers and self.state(model, item) in states
        ]

    def outstanding(self, model: Any) -> int:
        """Return the number of outstanding rollouts."""
        held = self.in_state(model, "delivered", "redelivery")
        if not self.by_group:
            claimed = sum(map(self.is_claimed, model.rollouts.values()))
            return claimed + len(self.waiting(model)) + len(held)
        return sum(
            self.is_claimed(rollout) or self.matches(rollout)
            for name, group in model.groups.items()
            if not group.number or group.number > self.cursor or group.number in held
            for rollout in model.members(name)
        )

    def refuses(self, model: Any, rollout: Any) -> bool:
        """Return whether a rollout may not be claimed yet."""
        group = model.groups.get(rollout.group)
        if rollout.attempts or (group is None and self.by_group) or not self.allows(rollout):
            return False
        if group is not None and group.claimed is not None:
            return False
        if group is not None and any(r.finished for r in model.members(rollout.group)):
            return False
        return 0 < self.max_outstanding <= self.outstanding(model)

    def lag(self, model: Any, name: str) -> int:
        """Return how many publications an item is behind."""
        latest = [r.attempts[-1] for r in self.members(model, name) if r.attempts]
        numbers = [attempt.resources[2] for attempt in latest if attempt.resources[2]]
        return model.publications - min(numbers) if numbers else 0

    def is_stale(self, model: Any, name: str) -> bool:
        """Return whether an item is passed over."""
        if self.max_lag is None or self.delivers_stale:
            return False
        return self.lag(model, name) > self.max_lag

    # Events

    def pull(
        self, model: Any, most: int, deliveries: Sequence[Any], cursor: int, left: Collection[int]
    ) -> None:
        """Apply a pull: what it delivered, and the cursor and the waiting numbers of the store after it.

        How far a pull reads is open: it may pass over stale items, and must not pass over others.
        """
        names = self.numbers(model)
        again, fresh = self.in_state(model, "redelivery"), self.waiting(model)
        good = [n for n in (*again, *fresh) if not self.is_stale(model, names[n])]
        given = [delivery.completion_number for delivery in deliveries]
        passed = [n for n in again if n not in left] + [n for n in fresh if n <= cursor]
        skipped = [n for n in passed if n not in given]
        assert not set(skipped) & set(good), (skipped, good)
        assert given == good[: len(given)], (given, good)
        assert len(given) == min(most, len(good)) or (given and set(skipped) & set(again))
        assert max(0, self.cursor, *[n for n in given if n in fresh]) <= cursor
        self.cursor = cursor
        self.skipped += len(skipped)
        for number in skipped:
            self.items.pop(number, None)
        for delivery in deliveries:
            number = delivery.completion_number
            count = self.items[number].count + 1 if number in self.items else 1
            name = names[number]
            shown = (delivery.item_id, delivery.delivery_count, delivery.lag)
            assert shown == (name, count, self.lag(model, name)), delivery
            until = model.now + self.ack_seconds
            self.items[number] = Item(delivery.delivery_id, count, until)

    def set_released_aside(self, model: Any, numbers: Collection[int]) -> None:
        """Follow lower limits: released deliveries that waited for redelivery may be set aside now."""
        for number in numbers:
            item = self.items[number]
            if item.deadline is None and self.state(model, item) == "set_aside":
                item.delivery_id = ""  # the store gives it another

    def acknowledge(self, model: Any, delivery_ids: Collection[str], outcome: str) -> None:
        """End deliveries, all of them or none."""
        ids = {item.delivery_id: n for n, item in self.delivered(model).items()}
        for delivery_id in delivery_ids:
            item = self.items[ids[delivery_id]] if delivery_id in ids else None
            if item is None:
                raise Refused
            if item.deadline is None and self.state(model, item) != "set_aside":
                raise Refused
        for number in {ids[delivery_id] for delivery_id in delivery_ids}:
            item = self.items[number]
            if outcome != "released":
                del self.items[number]
                self.consumed += outcome == "consumed"
                self.dropped += outcome == "dropped"
                continue
            if self.state(model, item) == "set_aside":
                item.count = 0
            item.deadline = None
            if self.state(model, item) == "set_aside":
                item.delivery_id = ""  # the store gives it another
