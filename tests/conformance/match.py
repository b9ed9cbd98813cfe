"""Compares received values with expected ones.

An object matches if each of its keys does. It may have further keys, and `null` stands for a
missing field. A list must match item by item, and in length. Everything else must be equal, so a
64-bit integer is a text, as in ProtoJSON. Special values:

| written | matches |
| --- | --- |
| `{"$any": true}` | any present value |
| `{"$re": "…"}` | a text that matches the pattern as a whole |
| `{"$min": n}` | a number, or an integer in a text, of at least n |
| `{"$in": [a, b]}` | a value that matches one of these |
| `{"$not": a}` | a present value that does not match |
| `{"$set": [a, b]}` | a list of these, in any order |
| `{"$contains": [a, b]}` | a list that contains these |
| `{"$size": n}` | a list, object or text of this length |
| `{"$exact": a}` | exactly this value, without further keys |
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_SHOWN = 200
Differences = list[str]


def show(value: Any) -> str:
    """Return a value in few words."""
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}… ({len(text)} characters)"


def compare(expected: Any, found: Any, place: str = "") -> Differences:
    """Return the differences of a received value; empty if there are none. None: it is missing."""
    where = place or "the answer"
    if expected is None:
        return [] if found is None else [f"{where} should not be there, is {show(found)}"]
    if isinstance(expected, dict):
        if len(expected) == 1:
            [(word, argument)] = expected.items()
            if word in _OPERATORS:
                return _OPERATORS[word](argument, found, where)
        return _object(expected, found, place)
    if isinstance(expected, list):
        return _list(expected, found, where)
    return [] if _equal(expected, found) else [_other(where, expected, found)]


def _other(where: str, expected: Any, found: Any) -> str:
    return f"{where} is {show(found)}, not {show(expected)}"


def _equal(expected: Any, found: Any) -> bool:
    """1 and 1.0 are the same number, but not the same as true."""
    if isinstance(expected, bool) or isinstance(found, bool):
        return expected is found
    return bool(expected == found)


def _same(expected: Any, found: Any) -> bool:
    if isinstance(expected, dict) and isinstance(found, dict):
        return expected.keys() == found.keys() and all(
            _same(value, found[key]) for key, value in expected.items()
        )
    if isinstance(expected, list) and isinstance(found, list):
        return len(expected) == len(found) and all(map(_same, expected, found))
    return _equal(expected, found)


def _object(expected: dict[str, Any], found: Any, place: str) -> Differences:
    if not isinstance(found, dict):
        return [_other(place or "the answer", expected, found)]
    wrong: Differences = []
    for key, value in expected.items():
        wrong += compare(value, found.get(key), f"{place}.{key}" if place else key)
    return wrong


def _list(expected: list[Any], found: Any, where: str) -> Differences:
    items = [] if found is None else found  # an empty list is left out
    if not isinstance(items, list):
        return [_other(where, expected, found)]
    if len(items) != len(expected):
        return [f"{where} has {len(items)} items, not {len(expected)}: {show(items)}"]
    wrong: Differences = []
    for index, value in enumerate(expected):
        wrong += compare(value, items[index], f"{where}[{index}]")
    return wrong


def _any(_: Any, found: Any, where: str) -> Differences:
    return [f"{where} is not there"] if found is None else []


def _re(pattern: str, found: Any, where: str) -> Differences:
    if isinstance(found, str) and re.fullmatch(pattern, found, re.DOTALL):
        return []
    return [f"{where} is {show(found)}, not like {pattern}"]


def _min(least: float, found: Any, where: str) -> Differences:
    try:
        enough = found is not None and (int(found) if isinstance(found, str) else found) >= least
    except (TypeError, ValueError):
        enough = False
    return [] if enough else [f"{where} is {show(found)}, not at least {least}"]


def _in(choices: list[Any], found: Any, where: str) -> Differences:
    if any(not compare(choice, found) for choice in choices):
        return []
    return [f"{where} is {show(found)}, none of {show(choices)}"]


def _not(unwanted: Any, found: Any, where: str) -> Differences:
    if found is not None and compare(unwanted, found):
        return []
    return [f"{where} is {show(found)}"]


def _set(expected: list[Any], found: Any, where: str) -> Differences:
    wrong = _contains(expected, found, where)
    items = [] if found is None else found
    if not wrong and len(items) != len(expected):
        wrong = [f"{where} has {len(items)} items, not {len(expected)}: {show(items)}"]
    return wrong


def _contains(expected: list[Any], found: Any, where: str) -> Differences:
    left = list(found) if isinstance(found, list) else []
    for value in expected:
        for index, item in enumerate(left):
            if not compare(value, item):
                del left[index]
                break
        else:
            return [f"{where} lacks {show(value)}: {show(found)}"]
    return []


def _size(length: int, found: Any, where: str) -> Differences:
    size = 0 if found is None else len(found)
    return [] if size == length else [f"{where} has length {size}, not {length}: {show(found)}"]


def _exact(expected: Any, found: Any, where: str) -> Differences:
    return [] if _same(expected, found) else [_other(where, expected, found)]


_OPERATORS: dict[str, Callable[[Any, Any, str], Differences]] = {
    "$any": _any,
    "$re": _re,
    "$min": _min,
    "$in": _in,
    "$not": _not,
    "$set": _set,
    "$contains": _contains,
    "$size": _size,
    "$exact": _exact,
}
OPERATORS = frozenset(_OPERATORS)
