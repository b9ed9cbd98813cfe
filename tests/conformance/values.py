"""What scenarios write for values: names of saved ones, and generators of what is too long to write out.

`"${name}"` alone is the saved value itself, within a longer text its text; `"${name[0]}"` is an item of a saved
list. Generators:

| written | is |
| --- | --- |
| `{"$json": value}` | that value as compact JSON text in UTF-8, in base64 |
| `{"$text": text}` | that text in UTF-8, in base64 |
| `{"$hex": digits}` | these bytes, in base64 |
| `{"$repeat": [text, count]}` | the text, `count` times |
| `{"$list": [count, item]}` | a list of `count` items, with `${index}` from 0 in each |
| `{"$concat": [a, b, …]}` | lists, or texts, one after the other |
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Variables = Mapping[str, Any]

_NAME = re.compile(r"\$\{(\w+)(?:\[(\d+)\])?\}")
_PART = re.compile(r"([^.\[\]]+)|\[(\d+|\*)\]")


class ScenarioError(Exception):
    """A scenario is written wrong."""


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _list(argument: list[Any], variables: Variables) -> list[Any]:
    count, item = argument
    return [expand(item, {**variables, "index": index}) for index in range(count)]


def _concat(argument: list[Any]) -> Any:
    result = argument[0]
    for part in argument[1:]:
        result = result + part
    return result


_GENERATORS: dict[str, Callable[[Any], Any]] = {
    "$json": lambda value: _base64(
        json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    ),
    "$text": lambda text: _base64(text.encode()),
    "$hex": lambda digits: _base64(bytes.fromhex(digits)),
    "$repeat": lambda argument: argument[0] * argument[1],
    "$concat": _concat,
}
GENERATORS = frozenset(_GENERATORS) | {"$list"}


def expand(value: Any, variables: Variables) -> Any:
    """Return a value with its names and generators replaced. Raises ScenarioError."""
    if isinstance(value, str):
        return _substitute(value, variables)
    if isinstance(value, list):
        return [expand(item, variables) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1:
        [(word, argument)] = value.items()
        if word == "$list":
            return _list(argument, variables)
        if word in _GENERATORS:
            return _GENERATORS[word](expand(argument, variables))
    return {_text(key, variables): expand(item, variables) for key, item in value.items()}


def _substitute(text: str, variables: Variables) -> Any:
    whole = _NAME.fullmatch(text)
    return _named(whole, variables) if whole else _text(text, variables)


def _text(text: str, variables: Variables) -> str:
    return _NAME.sub(lambda found: str(_named(found, variables)), text)


def _named(found: re.Match[str], variables: Variables) -> Any:
    name, index = found.groups()
    if name not in variables:
        raise ScenarioError(f"nothing is saved as {name!r}")
    value = variables[name]
    if index is None:
        return value
    if not isinstance(value, list) or len(value) <= int(index):
        raise ScenarioError(f"{name!r} has no item {index}")
    return value[int(index)]


def names_in(value: Any) -> set[str]:
    """Return the names that a value refers to."""
    return {name for name, _ in _NAME.findall(json.dumps(value, ensure_ascii=False))}


def find(path: str, value: Any) -> Any:
    """Return what is at a path like `rollouts[0].rolloutId`; with `[*]` a list of all. None: nothing."""
    found, many = [value], False
    for key, index in _PART.findall(path):
        if index == "*":
            many = True
            found = [item for items in found if isinstance(items, list) for item in items]
        elif index:
            number = int(index)
            found = [i[number] for i in found if isinstance(i, list) and len(i) > number]
        else:
            found = [i[key] for i in found if isinstance(i, dict) and key in i]
    if many:
        return found
    return found[0] if found else None


def merge(responses: list[Any]) -> dict[str, Any]:
    """Return the messages of a stream as one: lists one after the other, of the rest the last."""
    merged: dict[str, Any] = {}
    for response in responses:
        for key, value in response.items():
            if isinstance(value, list):
                merged[key] = merged.get(key, []) + value
            else:
                merged[key] = value
    return merged
