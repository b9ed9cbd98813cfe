"""Attributes of spans as values: what OTLP carries, what instrumentations flatten or write as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from lightningstore.v1.triplet_pb2 import TripletWarning
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

Attributes = Mapping[str, AnyValue]

MOST_WARNINGS = 100
#: Deepest nesting of dotted keys that is read.
MAX_DEPTH = 64
_INT32 = 1 << 31
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)


class Warnings:
    """What could not be read in a trace: all of it counted, the first by sequence id listed."""

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self._kept: list[tuple[int, str, str, str]] = []

    def add(self, where: tuple[int, bytes], attribute: str, message: str) -> None:
        """Note something of the span with this sequence id and span id."""
        self.count += 1
        self._kept.append((where[0], where[1].hex(), attribute[:256], message))
        if len(self._kept) >= 10 * MOST_WARNINGS:
            self._kept = sorted(self._kept)[:MOST_WARNINGS]

    def messages(self) -> list[TripletWarning]:
        """Return the first of them."""
        return [
            TripletWarning(sequence_id=number, span_id=span_id, attribute=key, message=text)
            for number, span_id, key, text in sorted(self._kept)[:MOST_WARNINGS]
        ]


def plain(value: AnyValue) -> Any:
    """Return an OTLP value as plain value; bytes as None, since JSON has none."""
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {pair.key: plain(pair.value) for pair in value.kvlist_value.values}
    return None if kind in (None, "bytes_value") else getattr(value, kind)


def number(value: Any) -> float | None:
    """Return a finite number as float, None for anything else."""
    if not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if found - found == 0 else None


def tokens(value: AnyValue) -> list[int] | None:
    """Return a list of token ids, None if the value is none. Text of a list counts as one."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        try:
            return check_tokens(literal(value.string_value))
        except _UNREADABLE:
            return None
    if kind != "array_value":
        return None
    items = value.array_value.values
    ids = [item.int_value for item in items]
    # What is no integer reads as 0, so only zeros need a second look.
    if 0 in ids and any(
        i == 0 and items[at].WhichOneof("value") != "int_value" for at, i in enumerate(ids)
    ):
        return None
    return check_tokens(ids)


def check_tokens(ids: Any) -> list[int] | None:
    """Return a list of token ids as it is, None for anything else."""
    if not isinstance(ids, list):
        return None
    if ids and (set(map(type, ids)) != {int} or min(ids) < -_INT32 or max(ids) >= _INT32):
        return None
    return ids


# A text without its end reaches to the end of all, so that nothing is read twice.
_LITERAL = re.compile(
    r"""(?P<text>'[^'\\]*(?:\\.[^'\\]*)*'?|"[^"\\]*(?:\\.[^"\\]*)*"?)"""
    r"""|(?P<word>\b(?:None|True|False)\b)""",
    re.DOTALL,
)
_WORDS = {"None": "null", "True": "true", "False": "false"}
_ESCAPE = re.compile(
    r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.?))", re.DOTALL | re.IGNORECASE
)
_ESCAPED = {"\\": "\\", "'": "'", '"': '"', "n": "\n", "r": "\r", "t": "\t"}


def literal(text: str) -> Any:
    """Return the value of JSON, or of a Python literal of lists, dicts, strings and numbers.

    The latter is what str() makes of an answer; it becomes JSON token by token, because parsing it as
    Python takes a hundred times its size. Raises one of _UNREADABLE.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        if "'" not in text and "None" not in text and "True" not in text and "False" not in text:
            raise

    return msgspec.json.decode(_LITERAL.sub(_as_json, text))


def _as_json(token: re.Match[str]) -> str:
    if (word := token["word"]) is not None:
        return _WORDS[word]
    quoted = token["text"]
    if len(quoted) < 2 or quoted[-1] != quoted[0]:
        raise ValueError("a text without end")
    return msgspec.json.encode(_ESCAPE.sub(_unescape, quoted[1:-1])).decode()


def _unescape(found: re.Match[str]) -> str:
    digits = found[1] or found[2] or found[3]
    if digits is not None:
        return chr(int(digits, 16))
    if found[4] not in _ESCAPED:
        raise ValueError("no escape of Python's")
    return _ESCAPED[found[4]]


def read_json(text: str) -> Any:
    """Return the value of JSON; raises ValueError where it is none."""
    try:
        return msgspec.json.decode(text)
    except _UNREADABLE:
        raise ValueError("no JSON") from None


def read_literal(text: str) -> Any:
    """Return the value of JSON or of a Python literal; raises ValueError where it is neither."""
    try:
        return literal(text)
    except _UNREADABLE:
        raise ValueError("no list") from None


def write_json(value: Any) -> bytes | None:
    """Return a value as JSON, None if it nests too deep."""
    try:
        return msgspec.json.encode(value)
    except (RecursionError, ValueError):
        return None


def unflatten(pairs: Iterable[tuple[str, Any]]) -> tuple[Any, list[str]]:
    """Return nested maps for dotted keys, and the keys that found no place.

    A map whose keys are exactly "0" to "n-1" becomes a list. Where one key says that something is a value and
    another that it is a map, the map stays.
    """
    top: dict[str, Any] = {}
    refused: list[str] = []
    # Longer keys first: a map is then there before a value claims its place, whatever the order.
    for key, value in sorted(pairs, key=lambda pair: (-pair[0].count("."), pair[0])):
        parts = key.split(".")
        if len(parts) > MAX_DEPTH:
            refused.append(key)
            continue
        at = top
        for part in parts[:-1]:
            below = at.get(part)
            if below is None:
                below = at[part] = _Map()
            at = below
        if isinstance(at.get(parts[-1]), _Map):
            refused.append(key)
        else:
            at[parts[-1]] = value
    return _lists(top), refused


class _Map(dict[str, Any]):
    """A map made of dotted keys, and not a value that is one."""


def _lists(value: dict[str, Any]) -> Any:
    """Turn maps with the keys of a list into lists, from within; as deep as MAX_DEPTH."""
    made = {
        key: _lists(item) if isinstance(item, _Map) else item
        for key, item in sorted(value.items(), key=_place)
    }
    if made and all(key == str(at) for at, key in enumerate(made)):
        return list(made.values())
    return made


def _place(pair: tuple[str, Any]) -> tuple[int, int, str]:
    key = pair[0]
    if key.isascii() and key.isdecimal() and len(key) < 10:
        return 0, int(key), key
    return 1, 0, key
