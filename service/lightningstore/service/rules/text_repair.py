"""Repairs text that is not valid UTF-8, in messages that protobuf rejects, and in JSON. Pure.

Protobuf rejects a whole message for one invalid string in it. Texts of spans are only content, so
an invalid character is replaced by U+FFFD, as decoders do. Only messages that were rejected are
repaired.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from lightningstore.service.rules import wire
from lightningstore.service.rules.fields import is_repeated

#: Maximum number of fields that are examined; a message with more is left unchanged.
MAX_FIELDS = 50_000
#: Protobuf's own limit.
MAX_LEVELS = 100

#: Any escape in JSON; the group matches half of a surrogate pair.
_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)


class Repaired(NamedTuple):
    """A serialised message whose examined texts are valid."""

    data: bytes
    #: The first field whose text was invalid; empty if there is none.
    field: str


def message(data: bytes, kind: Descriptor) -> Repaired:
    """Repair the texts of a serialised message. Other malformations are kept."""
    repair = _Repair()
    try:
        return Repaired(repair.message(data, kind, "", 0), repair.field)
    except ValueError:
        return Repaired(data, repair.field)


class _Repair:
    """Walks through one message."""

    def __init__(self) -> None:
        self.field = ""
        self._left = MAX_FIELDS

    def message(self, data: bytes, kind: Descriptor, path: str, level: int) -> bytes:
        """Return a message with valid texts.

        Raises:
            ValueError: The message is malformed, too deep or too large.
        """
        if level > MAX_LEVELS:
            raise ValueError("too deep")
        parts: list[bytes] = []
        done = 0
        places: dict[int, int] = {}
        for number, begin, start, end in wire.fields(data, 0, len(data)):
            self._left -= 1
            if self._left < 0:
                raise ValueError("too many fields")
            field = kind.fields_by_number.get(number)
            if field is None or data[begin] & 7 != wire.LENGTH_DELIMITED:
                continue
            name = f"{path}.{field.name}" if path else field.name
            if is_repeated(field):
                places[number] = places.get(number, -1) + 1
                name = f"{name}[{places[number]}]"
            payload = data[start:end]
            if field.type == FieldDescriptor.TYPE_STRING:
                valid = self._text(payload, name)
            elif field.message_type is not None:
                valid = self.message(payload, field.message_type, name, level + 1)
            else:
                continue
            if valid is not payload:
                parts += (data[done:begin], wire.field(number, valid))
                done = end
        return b"".join((*parts, data[done:])) if parts else data

    def _text(self, payload: bytes, name: str) -> bytes:
        try:
            payload.decode()
        except UnicodeDecodeError:
            self.field = self.field or name
            return payload.decode(errors="replace").encode()
        return payload


def json(data: bytes) -> bytes:
    """Return JSON with U+FFFD for bytes that are not UTF-8 and for halves of surrogate pairs."""
    try:
        data.decode()
    except UnicodeDecodeError:
        data = data.decode(errors="replace").encode()
    return _ESCAPE.sub(lambda escape: rb"\ufffd" if escape[1] else escape[0], data)
