"""Number of records loaded from the back end at a time."""

from __future__ import annotations

from collections.abc import Iterable

#: Maximum number of records in one read, and their approximate bytes.
LOAD_AT_ONCE = 128
LOAD_BYTES = 4 << 20


class Pace:
    """Number of records to read next: fewer if they are large, to limit delays and memory."""

    def __init__(self) -> None:
        self.count = 8

    def note(self, read: Iterable[int]) -> None:
        """Record the sizes in bytes of the records that were read."""
        sizes = list(read)
        average = sum(sizes) // max(1, len(sizes))
        self.count = max(1, min(4 * self.count, LOAD_AT_ONCE, LOAD_BYTES // (average + 1)))
