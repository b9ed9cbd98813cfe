"""Looks for a key in a parsed answer. An answer has choices, and the first of them is the one that counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Container
from typing import Any

#: Objects that are looked into, and how deep.
_MAX_OBJECTS, _MAX_LEVELS = 200, 10


def find_first(value: Any, keys: Container[str]) -> Any:
    """Return the value of the first of the keys that is found, from above; None if none is.

    Of a list only the first item is looked at, so that the work does not grow with the answer.
    """
    waiting: deque[tuple[Any, int]] = deque([(value, 0)])
    for _ in range(_MAX_OBJECTS):
        if not waiting:
            break
        item, level = waiting.popleft()
        if isinstance(item, list):
            if item:
                waiting.append((item[0], level))
            continue
        if not isinstance(item, dict):
            continue
        for key, inner in item.items():
            if key in keys and inner is not None:
                return inner
            if (
                level < _MAX_LEVELS
                and isinstance(inner, dict | list)
                and len(waiting) < _MAX_OBJECTS
            ):
                waiting.append((inner, level + 1))
    return None
