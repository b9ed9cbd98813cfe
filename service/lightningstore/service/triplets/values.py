"""Attributes of spans as values: what OTLP carries, what instrumentations flatten or write as text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
from lightningstore.v1.triplet_pb2 import TripletWarning
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

Attributes = Mapping[str, AnyValue]

MOST_WARNINGS = 100
#: Deepest nesting of dotted keys that is read.
MAX_DEPTH = 64
#: Token ids as protobuf packs them, or as numbers.
Tokens = bytes | list[int]
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_TOKENS = msgspec.json.Decoder(list[_TokenId]).decode
_TOKEN_LISTS = msgspec.json.Decoder(list[list[_TokenId]]).decode
# An element of an array of integers from 0 to 2^31 - 1: field 1, its length, field 3, the number.
_ITEMS = re.compile(
    rb"\n(?:[\x02-\x05]\x18(?=[\x80-\xff]{0,3}[\x00-\x7f])|\x06\x18(?=[\x80-\xff]{4}[\x00-\x07]))"
    rb"([\x80-\xff]*[\x00-\x7f])",
).findall
# The headers of those below 2^28. Bytes below 128 end a number, so none of these is ever part of one, nor is the
# mark that takes their place: without it two numbers might look like a header.
_HEADERS = (b"\n\x02\x18", b"\n\x03\x18", b"\n\x04\x18", b"\n\x05\x18")
_MARK = b"\x7f\x7e"
_UNFINISHED = bytes(range(128, 256))
_UNREADABLE = (msgspec.DecodeError, UnicodeError, RecursionError, ValueError)


class Warnings:
    """What could not be read in a trace: all of it counted, the first by sequence id listed."""

    def __init__(self) -> None:
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
    if text := value.string_value:
        return text
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


def tokens(value: AnyValue) -> Tokens | None:
    """Return a list of token ids, None if the value is none. Text of a list, or of lists, counts as one."""
    kind = value.WhichOneof("value")
    if kind == "string_value":
        text = value.string_value
        try:
            if text.lstrip()[:2] == "[[":
                lists = _TOKEN_LISTS(text)
                return lists[0] if lists else []
            return _TOKENS(text)
        except _UNREADABLE:
            return None
    if kind != "array_value":
        return None
    items = value.array_value.values
    if items and items[0].WhichOneof("value") == "array_value":
        return tokens(items[0])
    return _packed(value.array_value)


def _packed(array: ArrayValue) -> bytes | None:
    """Return integers as protobuf packs them, None if the array has anything else.

    Each is a message in a message on the wire. Taking the headers away costs a tenth of making numbers of
    them, and they are most of what a trace holds.
    """
    data = array.SerializeToString()
    count = len(array.values)
    marked = data
    for header in _HEADERS:
        marked = marked.replace(header, _MARK)
    packed = marked.replace(_MARK, b"")
    # Each header lost a byte, each mark two, and one byte below 128 an item is left, the end of its number. An
    # item of another kind leaves two at least, and what looks like a header within it makes up for one.
    if (
        len(data) - len(marked) == count
        and len(marked) - len(packed) == 2 * count
        and len(packed.translate(None, _UNFINISHED)) == count
    ):
        return packed
    packed = b"".join(_ITEMS(data))
    # Three bytes of header each: anything but a small integer was passed over and makes a difference.
    return packed if len(packed) + 3 * count == len(data) else None


def check_tokens(ids: Any) -> list[int] | None:
    """Return a list of token ids as it is, None for anything else."""
    try:
        return msgspec.convert(ids, list[_TokenId])
    except msgspec.ValidationError:
        return None


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
