"""Outgoing text, made valid UTF-8.

A Python string may contain half a surrogate pair, from `os.fsdecode`, broken JSON or a text cut by UTF-16 units. UTF-8
cannot encode it, so protobuf and gRPC reject it. Content (failures, spans, JSON values, templates) is repaired by
`valid`. Ids are not repaired, because a repaired id would name something else: `names_fields` and `check` reject them
and name the field.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

#: Arguments whose items are fields, with the names that the caller knows.
_HOLDERS = ("self", "fields", "filters")


def valid(text: str) -> str:
    """Return a text without halves of surrogate pairs.

    Two consecutive halves become the character that they encode. A single half becomes U+FFFD.
    """
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def valid_utf8(text: str) -> bytes:
    """Return a text in UTF-8, repaired as by `valid`."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return valid(text).encode()


def check(field: str, text: str) -> None:
    """Reject an id that is not valid UTF-8. Raises ValueError, which names the field."""
    try:
        str.encode(text)
    except UnicodeEncodeError as error:
        raise ValueError(_explain(field, error)) from None


def names_fields(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function that creates a message of the contract from its arguments.

    A text that is not valid UTF-8 then raises a ValueError that names the argument.
    """

    @functools.wraps(function)
    def build(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except UnicodeEncodeError as error:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            path = _path_to(error.object, arguments) or "a text field"
            raise ValueError(_explain(path, error)) from None

    return build


@contextmanager
def naming(path: str) -> Iterator[None]:
    """Prefix the message of a TypeError or ValueError with the path of the item."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from None


def _path_to(text: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the path of a text in arguments, their items and their fields."""
    parts = list(arguments.items())
    while parts:
        path, part = parts.pop(0)
        if isinstance(part, str):
            if part == text:
                return path
        elif isinstance(part, Mapping):
            if text in part:
                return f"a key of {path}"
            names = {key: str(key) if path in _HOLDERS else f"{path}[{key!r}]" for key in part}
            parts.extend((names[key], item) for key, item in part.items())
        elif isinstance(part, list | tuple):
            parts.extend((f"{path}[{index}]", item) for index, item in enumerate(part))
        elif dataclasses.is_dataclass(part):
            prefix = "" if path in _HOLDERS else f"{path}."
            parts.extend(
                (f"{prefix}{field.name}", getattr(part, field.name))
                for field in dataclasses.fields(part)
            )
    return None


def _explain(field: str, error: UnicodeEncodeError) -> str:
    half = error.object[error.start]
    return (
        f"{field} must be valid UTF-8: the character at index {error.start} is {half!a}, "
        "half of a surrogate pair"
    )
