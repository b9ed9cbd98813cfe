"""Requests in JSON (ProtoJSON), as serialised messages."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    FieldInvalid,
    MalformedMessage,
    PayloadTooLarge,
)
from lightningstore.service.rules.fields import is_repeated
from lightningstore.service.rules.json_values import has_more_values
from lightningstore.service.rules.texts import SHOWN_LENGTH

#: Maximum size of a JSON text, and number of values in it. A string is decoded, and all objects are built, in one step
#: that holds the interpreter, for 30 ms at most. Messages in protobuf may be larger.
MAX_BYTES = 4 << 20
MAX_VALUES = 100_000
#: How the parser names an unknown field and its message, the place where it stopped, and the fields around it.
_UNKNOWN = re.compile(r'has no field named "([^"]*)" at "([^"]*)"')
_PLACE = re.compile(r" at \w+\.([\w.\[\]]+?)\.*$")
_PARENT = re.compile(r"Failed to parse (\w+) field: ")
_PARENTS = re.compile(f"^(?:{_PARENT.pattern})+")
#: Base64, of either alphabet, with or without padding. Programs break it into lines.
_BASE64 = re.compile(r"[\sA-Za-z0-9+/_-]*+[\s=]*+")
_NOT_BASE64 = "must be base64; a field that holds JSON is encoded, too"


def serialised(data: bytes, kind: type[Message], *, ignore_unknown: bool = False) -> bytes:
    """Return the message that a JSON text describes, serialised.

    Values are counted before any is built: each takes a hundred bytes of memory.

    Args:
        data: The text.
        kind: The type of the message.
        ignore_unknown: Whether fields that the type does not have are ignored, and not rejected.

    Raises PayloadTooLarge, BatchTooLarge, FieldInvalid, MalformedMessage.
    """
    if len(data) > MAX_BYTES:
        raise PayloadTooLarge("body in JSON", len(data), MAX_BYTES)
    if has_more_values(data, MAX_VALUES):
        raise BatchTooLarge("values in the body", f"more than {MAX_VALUES}", MAX_VALUES)
    name = kind.DESCRIPTOR.full_name
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise MalformedMessage(f"{name} in JSON; an empty request is {{}}") from None
    if not isinstance(value, dict):
        raise FieldInvalid("body", f"must be a JSON object, a {name}")
    message = kind()
    try:
        _check_bytes(value, kind.DESCRIPTOR, "")  # type: ignore[arg-type]
        ParseDict(value, message, ignore_unknown_fields=ignore_unknown)
        return message.SerializeToString()
    except RecursionError:
        raise MalformedMessage(f"{name} in JSON: it nests too deep") from None
    except (ParseError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _field_error(error, name) from None


def _check_bytes(value: dict[str, Any], kind: Descriptor, path: str) -> None:
    """Raise FieldInvalid for bytes that are not base64: the parser passes over other characters, and so changes them.

    What else is wrong, the parser finds.
    """
    fields = _bytes_within(kind)
    for name in fields.keys() & value.keys():
        field, given = fields[name], value[name]
        place = f"{path}{name}"
        inner = field.message_type
        if not is_repeated(field):
            _check_item(given, field, place)
        elif isinstance(given, list):
            for i, item in enumerate(given):
                _check_item(item, field, f"{place}[{i}]")
        elif isinstance(given, dict) and inner is not None and inner.GetOptions().map_entry:
            for key, item in given.items():
                _check_item(item, inner.fields_by_name["value"], f"{place}[{key!r}]")


def _check_item(item: Any, field: FieldDescriptor, place: str) -> None:
    if field.message_type is None:
        if item is not None and not (isinstance(item, str) and _BASE64.fullmatch(item)):
            raise FieldInvalid(place, _NOT_BASE64)
    elif isinstance(item, dict):
        _check_bytes(item, field.message_type, f"{place}.")


@cache
def _bytes_within(kind: Descriptor) -> dict[str, FieldDescriptor]:
    """Return the fields of bytes of a message, and those whose messages may have some, by both of their names."""
    found = [field for field in kind.fields if _has_bytes(field, frozenset())]
    return {name: field for field in found for name in (field.name, field.json_name)}


def _has_bytes(field: FieldDescriptor, above: frozenset[Descriptor]) -> bool:
    inner = field.message_type
    if inner is None:
        return field.type == FieldDescriptor.TYPE_BYTES
    return inner not in above and any(_has_bytes(each, above | {inner}) for each in inner.fields)


def _field_error(error: Exception, name: str) -> FieldInvalid:
    """Return the error of a text that does not describe a message, with the path of its field where it is known."""
    text = str(error).partition("\n")[0]
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        path = f"{unknown[2]}.{unknown[1]}".partition(".")[2]
        return FieldInvalid(path, f"{name} has no such field")
    place = _PLACE.search(text)
    path = place[1] if place is not None else ".".join(_PARENT.findall(text))
    reason = _PLACE.sub("", _PARENTS.sub("", text))[:SHOWN_LENGTH]
    return FieldInvalid(path or "body", reason.rstrip("."))
