"""Long work in short steps."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

#: Work that yields now and then, and returns a T.
Steps = Generator[None, None, T]

#: Items between two yields: about a millisecond of work.
SLICE = 256


def run(steps: Steps[T]) -> T:
    """Do the work in one go."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
