"""Places of records in an order that many of them change, as a sorted list in blocks."""

from __future__ import annotations

import bisect
from collections.abc import Hashable, Iterator
from itertools import chain
from typing import Any, Generic, TypeAlias, TypeVar

#: A value and the key of the record that has it.
Place: TypeAlias = tuple[Any, int]

T = TypeVar("T", bound=Any)
P = TypeVar("P", bound=tuple[Any, ...])
V = TypeVar("V", bound=Hashable)

#: A block with twice as many places is divided.
BLOCK = 1000


class Places(Generic[T]):
    """Places, or keys alone, in ascending order. Adding and removing one moves only those of a block."""

    def __init__(self, lowest: Any = None) -> None:
        """Prepare for places. `lowest`: a value that no other is below, and that many records have."""
        self._blocks: list[list[T]] = []
        self._value = lowest
        # Of a value that many have, new places are at the end.
        self._lowest: Places[T] | None = Places() if lowest is not None else None

    def add(self, place: T) -> None:
        """Add a place, which is not there."""
        if self._lowest is not None and place[0] == self._value:
            self._lowest.add(place)
            return
        blocks = self._blocks
        if not blocks:
            blocks.append([place])
            return
        block = blocks[-1]
        if place > block[-1]:  # nearly always
            block.append(place)
            if len(block) == 2 * BLOCK:
                blocks[-1:] = [block[:BLOCK], block[BLOCK:]]
            return
        at = self._find(place)
        block = blocks[at]
        bisect.insort(block, place)
        if len(block) == 2 * BLOCK:
            blocks[at : at + 1] = [block[:BLOCK], block[BLOCK:]]

    def remove(self, place: T) -> None:
        """Remove a place, if it is there."""
        if self._lowest is not None and place[0] == self._value:
            self._lowest.remove(place)
            return
        at = self._find(place)
        if at == len(self._blocks):
            return
        block = self._blocks[at]
        index = bisect.bisect_left(block, place)
        if block[index] == place:
            del block[index]
            if not block:
                del self._blocks[at]

    def each(self, place: T | None = None, *, descending: bool = False) -> Iterator[T]:
        """Yield what `beyond` does, one by one."""
        return chain.from_iterable(self.beyond(place, descending=descending))

    def beyond(self, place: T | None, *, descending: bool) -> Iterator[list[T]]:
        """Yield the places above one, or below it if descending, in some parts; None: all places.

        Between two parts, places may be added and removed.
        """
        is_low = self._lowest is not None and place is not None and place[0] == self._value
        if self._lowest is not None and not descending and (is_low or place is None):
            yield from self._lowest.beyond(place, descending=False)
            place = None
        above = None if is_low else place
        if not (is_low and descending):
            while part := self._part(above, descending=descending):
                yield part
                above = part[-1]
        if self._lowest is not None and descending:
            yield from self._lowest.beyond(place if is_low else None, descending=True)

    def _part(self, place: T | None, *, descending: bool) -> list[T]:
        if descending:
            at = len(self._blocks) - 1 if place is None else self._find(place)
            at = min(at, len(self._blocks) - 1)
            while at >= 0:
                block = self._blocks[at]
                end = len(block) if place is None else bisect.bisect_left(block, place)
                if end:
                    return block[end - 1 :: -1]
                at -= 1
            return []
        at = 0 if place is None else self._find(place)
        for block in self._blocks[at : at + 2]:
            start = 0 if place is None else bisect.bisect_right(block, place)
            if start < len(block):
                return block[start:]
        return []

    def _find(self, place: T) -> int:
        """Return the number of the first block that ends with a place as high; if none does, that of blocks."""
        return bisect.bisect_left(self._blocks, place, key=lambda block: block[-1])


def insert(ascending: list[P], place: P) -> None:
    """Insert where it belongs, nearly always at the end."""
    if ascending and ascending[-1] > place:
        bisect.insort(ascending, place)
    else:
        ascending.append(place)


def join(index: dict[V, dict[int, None]], value: V, key: int) -> None:
    """Add a rollout to an index, unless it has no value there."""
    if value:
        index.setdefault(value, {})[key] = None


def leave(index: dict[V, dict[int, None]], value: V, key: int) -> None:
    """Remove a rollout from an index, if it is in it."""
    keys = index.get(value)
    if keys is not None:
        keys.pop(key, None)
        if not keys:
            del index[value]
