"""Items that a pull may deliver, and the choice among them."""

from __future__ import annotations

from typing import NamedTuple

from lightningstore.service.rules.rows import Shown
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.consumer_pb2 import Delivery
from lightningstore.v1.group_pb2 import Group

#: Approximate bytes of a delivery beside what it delivers.
DELIVERY_BYTES = 300


class Candidate(NamedTuple):
    """An item that may be delivered."""

    #: Its delivery, with the item and its number alone. Filled in when it is delivered.
    record: Delivery
    end_ns: int
    publish_number: int
    #: The rollout, or the members of the group.
    rollouts: list[Shown]
    #: Bytes in an answer, 0 if it was read as stale and has nothing to deliver; how many rollouts have room for payloads.
    size: int
    whole: int
    group: Group | None = None

    @property
    def number(self) -> int:
        """Completion number of the item."""
        return self.record.completion_number

    @property
    def item_id(self) -> str:
        """Id of the rollout or of the group."""
        return self.record.item_id

    def bare_size(self) -> int:
        """Return its bytes in an answer without the payloads of its rollouts."""
        size = DELIVERY_BYTES + sum(shown.bare_size() for shown in self.rollouts)
        return size if self.group is None else size + self.group.ByteSize()


class Found(NamedTuple):
    """What a pull has read."""

    #: Items to be delivered again, and new ones, each by completion number.
    again: list[Candidate]
    fresh: list[Candidate]
    #: The number up to which the new ones are all that match.
    through: int


class Choice:
    """What of the items that were read is delivered, and what is passed over."""

    def __init__(self, through: int, room: int, most: int) -> None:
        """Begin after a completion number, with room in the answer for bytes and items."""
        #: The items that are delivered, with their lags, and new ones that are stale.
        self.chosen: list[tuple[Candidate, int]] = []
        self.skipped: list[Candidate] = []
        #: Where the cursor goes, and how many items in the backlog it passes.
        self.through, self.passed = through, 0
        #: Whether no more fit; and whether the read is out of date: an item changed, or one to redeliver was stale.
        self.is_full = self.is_outdated = False
        self._room, self._most = room, most

    def is_enough(self, least: int) -> bool:
        """Return whether that many items are delivered, or as many as fit into the answer."""
        return len(self.chosen) >= least or (bool(self.chosen) and self.is_full)

    def add(self, candidate: Candidate, lag: int) -> bool:
        """Choose an item; return False if the answer has no room for it."""
        fits = self._room >= candidate.size or not self.chosen
        if not fits or len(self.chosen) == self._most:
            self.is_full = True
            return False
        self.chosen.append((candidate, lag))
        self._room -= candidate.size
        self.is_full = self._room < 0
        return True


def of_rollout(shown: Shown) -> Candidate:
    """Return a finished rollout as an item."""
    record = shown.rollout
    return Candidate(
        record_of(record.completion_number, record.rollout_id),
        nanoseconds(record.end_time),
        shown.attempt.publish_number if shown.attempt is not None else 0,
        [shown],
        shown.size() + DELIVERY_BYTES,
        1,
    )


def record_of(number: int, item_id: str) -> Delivery:
    """Return a delivery with the item and its number alone."""
    record = Delivery()  # keywords cost three times as much as assignments
    record.completion_number, record.item_id = number, item_id
    return record
