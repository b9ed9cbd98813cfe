"""How many records are read from the back end in one go."""

from __future__ import annotations

from collections.abc import Iterable

#: Records that are read in one go, at most, and roughly their bytes.
LOAD_AT_ONCE = 128
LOAD_BYTES = 4 << 20


class Pace:
    """How many records to read next: few large ones, so that nobody waits long and memory holds."""

    def __init__(self) -> None:
        self.count = 8

    def note(self, read: Iterable[int]) -> None:
        """Note the bytes of each of those that were read."""
        sizes = list(read)
        average = sum(sizes) // max(1, len(sizes))
        self.count = max(1, min(4 * self.count, LOAD_AT_ONCE, LOAD_BYTES // (average + 1)))
