"""Answers as JSON (ProtoJSON), made of their serialised form in parts.

A step of C holds the interpreter: reading a message, encoding a text, collecting the garbage of many objects. So a large
message is not built. It is walked on the wire, and its records are built and encoded one at a time.
"""

from __future__ import annotations

import codecs
from base64 import b64encode
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import msgspec
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.rules import wire
from lightningstore.service.rules.fields import is_repeated

#: Descriptors of protobuf: each of its implementations has types of its own.
Descriptor: TypeAlias = Any
FieldDescriptor: TypeAlias = Any

#: Messages, texts and bytes above this size are not built as a whole.
LARGE_BYTES = 64 << 10
#: Approximate size of a part, which takes a millisecond or two.
PART_BYTES = 16 << 10
#: Bytes of a text, and numbers of a list, that are encoded in one step. Base64 encodes three bytes together.
PIECE_BYTES = 48 << 10
PIECE_VALUES = 1000
#: Fields of an entry of a map.
_KEY, _VALUE = 1, 2


class _Place(NamedTuple):
    """The positions of a field: of its tag, of its content, and its end."""

    begin: int
    start: int
    end: int


def parts(data: bytes, kind: type[Message]) -> Iterator[bytes]:
    """Yield a serialised message as JSON in parts, with names in lowerCamelCase and without unset fields."""
    waiting: list[bytes] = []
    size = 0
    for text in _message(data, 0, len(data), kind.DESCRIPTOR):
        waiting.append(text)
        size += len(text)
        if size >= PART_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _message(data: bytes, start: int, end: int, kind: Descriptor) -> Iterator[bytes]:
    """Yield the JSON of the message between two positions."""
    is_large = end - start > LARGE_BYTES and not kind.full_name.startswith("google.protobuf.")
    fields = _fields(data, start, end, kind) if is_large else None
    if fields is None:
        yield msgspec.json.encode(_built(data[start:end], kind))
        return
    walked, rest = fields
    separator = b"{"
    for name, value in _built(rest, kind).items():
        yield separator + msgspec.json.encode(name) + b":"
        yield from _value(value)
        separator = b","
    for number, places in walked.items():
        field = kind.fields_by_number[number]
        yield separator + msgspec.json.encode(field.json_name) + b":"
        yield from _field(data, places, field)
        separator = b","
    yield b"}" if separator == b"," else b"{}"


def _fields(
    data: bytes, start: int, end: int, kind: Descriptor
) -> tuple[dict[int, list[_Place]], bytes] | None:
    """Return the places of the fields to walk by number, and the other fields, serialised.

    None if fields occur together of which the last one counts, or which are merged: protobuf knows how.
    """
    walked: dict[int, list[_Place]] = {}
    rest: list[bytes] = []
    seen: set[str] = set()
    for number, *positions in wire.fields(data, start, end):
        field, place = kind.fields_by_number.get(number), _Place(*positions)
        if field is None:
            continue
        if not is_repeated(field):
            name = (field.containing_oneof or field).name
            if name in seen:
                return None
            seen.add(name)
        if _is_walked(field, place.end - place.start):
            walked.setdefault(number, []).append(place)
        else:
            rest.append(data[place.begin : place.end])
    return walked, b"".join(rest)


def _is_walked(field: FieldDescriptor, size: int) -> bool:
    """Return whether a field is written by itself. Of a repeated field, all items are or none."""
    kind = field.message_type
    content = kind.fields_by_number[_VALUE] if _is_map(kind) else field
    has_length = content.type in (field.TYPE_MESSAGE, field.TYPE_BYTES, field.TYPE_STRING)
    return has_length and (is_repeated(field) or size > LARGE_BYTES)


def _is_map(kind: Descriptor) -> bool:
    return kind is not None and bool(kind.GetOptions().map_entry)


def _field(data: bytes, places: list[_Place], field: FieldDescriptor) -> Iterator[bytes]:
    """Yield the JSON of a field that is walked."""
    if not is_repeated(field):
        yield from _item(data, places[0].start, places[0].end, field)
        return
    is_map = _is_map(field.message_type)
    separator = b"{" if is_map else b"["
    for place in places:
        yield separator
        if is_map:
            yield from _entry(data, place, field.message_type)
        else:
            yield from _item(data, place.start, place.end, field)
        separator = b","
    yield b"}" if is_map else b"]"


def _entry(data: bytes, place: _Place, kind: Descriptor) -> Iterator[bytes]:
    """Yield the JSON of an entry of a map whose keys are strings; key or value are absent if they are empty."""
    key, value = b"", (place.end, place.end)
    for number, _, start, end in wire.fields(data, place.start, place.end):
        if number == _KEY:
            key = data[start:end]
        elif number == _VALUE:
            value = start, end
    yield msgspec.json.encode(key.decode()) + b":"
    yield from _item(data, *value, kind.fields_by_number[_VALUE])


def _item(data: bytes, start: int, end: int, field: FieldDescriptor) -> Iterator[bytes]:
    """Yield the JSON of one message, string or bytes."""
    if field.type == field.TYPE_MESSAGE:
        yield from _message(data, start, end, field.message_type)
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    yield b'"'
    for at in range(start, end, PIECE_BYTES):
        piece = data[at : min(at + PIECE_BYTES, end)]
        if field.type == field.TYPE_BYTES:
            yield b64encode(piece)
        else:
            yield msgspec.json.encode(decoder.decode(piece))[1:-1]
    yield b'"'


def _value(value: Any) -> Iterator[bytes]:
    """Yield the JSON of a value, of a long list in pieces."""
    if not isinstance(value, list) or len(value) <= PIECE_VALUES:
        yield msgspec.json.encode(value)
        return
    for at in range(0, len(value), PIECE_VALUES):
        yield b"," if at else b"["
        yield msgspec.json.encode(value[at : at + PIECE_VALUES])[1:-1]
    yield b"]"


def _built(data: bytes, kind: Descriptor) -> Any:
    """Return the JSON value of a message that is small enough to be built."""
    return MessageToDict(GetMessageClass(kind).FromString(data))
