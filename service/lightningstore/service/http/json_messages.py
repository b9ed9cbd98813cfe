"""Requests in JSON (ProtoJSON), as serialised messages."""

from __future__ import annotations

import re

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    FieldInvalid,
    MalformedMessage,
    PayloadTooLarge,
)
from lightningstore.service.rules.json_values import has_more_values
from lightningstore.service.rules.texts import SHOWN_LENGTH

#: Maximum size of a JSON text, and number of values in it. A string is decoded, and all objects are built, in one step
#: that holds the interpreter, for 30 ms at most. Messages in protobuf may be larger.
MAX_BYTES = 4 << 20
MAX_VALUES = 100_000
#: How the parser names an unknown field and its message, the place where it stopped, and the fields around it.
_UNKNOWN = re.compile(r'has no field named "([^"]*)" at "([^"]*)"')
_PLACE = re.compile(r" at \w+\.([\w.\[\]]+?)\.?$")
_PARENT = re.compile(r"Failed to parse (\w+) field: ")
_PARENTS = re.compile(f"^(?:{_PARENT.pattern})+")


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
        ParseDict(value, message, ignore_unknown_fields=ignore_unknown)
        return message.SerializeToString()
    except (ParseError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise _field_error(error, name) from None


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
