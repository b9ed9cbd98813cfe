"""Attributes of spans as values: what OTLP carries, what instrumentations write as text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
from lightningstore.client.otlp import from_any_value
from lightningstore.service.rules import text_repair
from lightningstore.service.rules.json_values import (
    MAX_VALUES,
    has_more_objects,
    has_more_values,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Attributes = Mapping[str, AnyValue]
#: Takes the key of an attribute that cannot be read, and the reason.
Warn = Callable[[str, str], None]

_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)


class SerializedAttributes(Mapping[str, AnyValue]):
    """Attributes of a stored span. Each is parsed when it is read."""

    __slots__ = ("_serialized",)

    def __init__(self, serialized: dict[str, bytes]) -> None:
        self._serialized = serialized

    def __getitem__(self, key: str) -> AnyValue:
        return AnyValue.FromString(self._serialized[key])

    def __contains__(self, key: object) -> bool:
        return key in self._serialized

    def __iter__(self) -> Iterator[str]:
        return iter(self._serialized)

    def __len__(self) -> int:
        return len(self._serialized)

    def serialized(self, key: str) -> bytes:
        """Return a value without parsing it."""
        return self._serialized[key]


def attributes_of(span: Span) -> Attributes:
    """Return the attributes of a span by key. `span`: or a `stored.StoredSpan`."""
    if type(span) is Span:
        return {pair.key: pair.value for pair in span.attributes}
    found: SerializedAttributes = span.attributes
    return found


def serialized(found: Attributes, key: str) -> bytes:
    """Return an attribute as a serialised AnyValue."""
    if type(found) is SerializedAttributes:
        return found.serialized(key)
    return found[key].SerializeToString()


def ignore(_key: str, _text: str) -> None:
    """Take a warning that has been given before."""


def number(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if found - found == 0 else None


#: Maximum number of objects in a text that is parsed. The parser holds the interpreter until it is done: 30 ms for
#: these, and as long for the values that a text may have.
MAX_OBJECTS = 100_000
# A string without its end reaches to the end of the text, so that nothing is read twice. Each alternative begins with a
# character of its own, without groups, lookbehinds and sets: then what does not match is skipped at 1 ns a character.
#: Strings of JSON, which stay, and the numbers that JSON does not have.
_JSON_OR_NOT = re.compile(
    r'"(?:[^"\\]++|\\.)*+"?|Infinity\b|NaN\b|inf\b|nan\b'
    r"|-(?:Infinity|NaN|inf|nan)\b|\+(?:Infinity|NaN|inf|nan)\b",
    re.DOTALL,
)
#: Strings and words of Python.
_LITERAL = re.compile(
    r"""'[^'\\]*(?:\\.[^'\\]*)*'?|"[^"\\]*(?:\\.[^"\\]*)*"?|None\b|True\b|False\b"""
    r"""|Infinity\b|NaN\b|inf\b|nan\b|-(?:Infinity|NaN|inf|nan)\b|\+(?:Infinity|NaN|inf|nan)\b""",
    re.DOTALL,
)
_WORDS = {"True": "true", "False": "false"}
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.?))", re.DOTALL)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


def read_json(text: str) -> Any:
    """Return the value of JSON, or of a Python literal of lists, dicts, strings and numbers.

    The latter is what str() makes of an answer. It becomes JSON token by token, because parsing it as Python takes
    a hundred times its size. Numbers that JSON does not have (NaN, Infinity) become null, half a surrogate pair
    becomes U+FFFD.

    Raises ValueError.
    """
    data = text.encode(errors="replace")
    if has_more_values(data, MAX_VALUES):
        raise ValueError(f"more than {MAX_VALUES} values")
    if has_more_objects(data, MAX_OBJECTS):
        raise ValueError(f"more than {MAX_OBJECTS} objects")
    try:
        return msgspec.json.decode(data)
    except RecursionError:
        raise ValueError("nests too deep") from None
    except msgspec.DecodeError:
        pass
    try:
        return msgspec.json.decode(
            text_repair.json(_JSON_OR_NOT.sub(_without_number, text).encode())
        )
    except _UNREADABLE:
        pass
    try:
        return msgspec.json.decode(_LITERAL.sub(_as_json, text))
    except _UNREADABLE:
        raise ValueError("neither JSON nor a Python literal") from None


def _without_number(token: re.Match[str]) -> str:
    return token[0] if token[0][0] == '"' else "null"


def _as_json(token: re.Match[str]) -> str:
    quoted = token[0]
    if quoted[0] not in "'\"":
        return _WORDS.get(quoted, "null")
    if len(quoted) < 2 or quoted[-1] != quoted[0]:
        raise ValueError("a text without end")
    if "\\" not in quoted and '"' not in quoted[1:-1] and quoted.isprintable():
        return f'"{quoted[1:-1]}"'
    unescaped = _ESCAPE.sub(_unescape, quoted[1:-1]).encode(errors="replace").decode()
    return msgspec.json.encode(unescaped).decode()


def _unescape(escape: re.Match[str]) -> str:
    digits = escape[1] or escape[2] or escape[3]
    if digits is not None:
        return chr(int(digits, 16))
    if escape[4] not in _ESCAPED:
        raise ValueError("not an escape of Python's")
    return _ESCAPED[escape[4]]


def write_json(value: Any) -> bytes | None:
    """Return a value as JSON, None if it nests too deep. Bytes become base64, NaN and Infinity null."""
    try:
        return msgspec.json.encode(value)
    except (RecursionError, ValueError):
        return None


def parsed(value: Any) -> Any:
    """Return the value of a text that is JSON of an object or a list; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return read_json(value)
        except ValueError:
            return value
    return value


def plain(value: AnyValue) -> Any:
    """Return an OTLP value as a Python value, parsed if it is the text of JSON."""
    return parsed(from_any_value(value))
