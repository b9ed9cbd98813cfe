"""How many rollouts are read from the back end in one go."""

from __future__ import annotations

from collections.abc import Iterable

#: Rollouts that are read in one go, at most, and roughly the bytes of their inputs.
LOAD_AT_ONCE = 128
LOAD_BYTES = 4 << 20


class Pace:
    """How many rollouts to read next: few of large inputs, so that nobody waits long and memory holds."""

    def __init__(self) -> None:
        """Begin with a few: nothing is known yet."""
        self.count = 8

    def note(self, inputs: Iterable[bytes]) -> None:
        """Note the inputs that were read."""
        sizes = [len(input_json) for input_json in inputs]
        average = sum(sizes) // max(1, len(sizes))
        self.count = max(1, min(4 * self.count, LOAD_AT_ONCE, LOAD_BYTES // (average + 1)))
