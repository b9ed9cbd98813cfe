"""Nested values out of dotted keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

#: Deepest nesting of dotted keys that is read.
MAX_DEPTH = 64


def unflatten(pairs: Iterable[tuple[str, Any]]) -> tuple[Any, list[str]]:
    """Return nested maps for dotted keys, and the keys that found no place.

    A map whose keys are exactly "0" to "n-1" becomes a list. Where one key says that something is a value and
    another that it is a map, the map stays.
    """
    top: dict[str, Any] = {}
    maps: dict[str, dict[str, Any]] = {"": top}
    refused: list[str] = []
    for key, value in pairs:
        head, _, last = key.rpartition(".")
        at = maps.get(head)
        if at is None:
            if head.count(".") >= MAX_DEPTH:
                refused.append(key)
                continue
            at = _open(maps, head, refused)
        if key in maps:
            refused.append(key)
        else:
            at[last] = value
    # A map is opened before those in it, so from the last to the first is from within.
    for head in reversed(maps):
        made = maps[head]
        if "0" in made and all(str(at) in made for at in range(len(made))):
            items = [made[str(at)] for at in range(len(made))]
            if not head:
                return items, refused
            above, _, last = head.rpartition(".")
            maps[above][last] = items
    return top, refused


def _open(maps: dict[str, dict[str, Any]], head: str, refused: list[str]) -> dict[str, Any]:
    """Return the map that a key lies in, made with those above it; a value in its place is refused."""
    found = maps.get(head)
    if found is None:
        above, _, last = head.rpartition(".")
        at = _open(maps, above, refused)
        if last in at:
            refused.append(head)
        found = maps[head] = at[last] = {}
    return found
