"""Requests out of their minds: wild values in every field of a message, and bytes that are none."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

INTEGERS = [0, 1, 2, 3, -1, 7, 100, 10_000, 10_001, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63)]
DOUBLES = [0.0, -0.0, 1.0, -1.0, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")]
TEXTS = [
    "",
    "latest",
    " ",
    ".",
    "../../../etc/passwd",
    "a/b",
    "a\0b",
    "'; DROP TABLE rollouts; --",
    '" OR 1=1',
    "%s%n%d{0}",
    "*",
    "[",
    "ä\u202e\U0001f600",
    "x" * 257,
    "start_time desc",
    "status",
    "metadata_json",
    "rollout.status",
    "4611686018427387904",
]
JSON = [
    b"",
    b"null",
    b"{}",
    b"[]",
    b"1",
    b'{"a": 1}',
    b"NaN",
    b"{",
    b"\xff\xfe",
    b'{"a": 1e999}',
    b"123456789012345678901234567890",
    b'"\\ud800"',
    b"[" * 1000 + b"]" * 1000,
    b"[" * 100_000,
    b"0" * 100,
    b"\x00",
    b"t" * 16,
    b"s" * 8,
]
#: What comes once in a thousand texts.
HUGE = "y" * (1 << 20)
TYPES = FieldDescriptor


class Wild:
    """Makes requests. `known` are ids that exist, so that some requests get past the first check."""

    def __init__(self, dice: random.Random, known: list[str]) -> None:
        self.dice, self.known = dice, known

    def message(self, descriptor: Descriptor, depth: int = 0) -> Message:
        """Return a message with wild values."""
        made = GetMessageClass(descriptor)()
        share = self.dice.choice((0.2, 0.5, 0.9))
        for field in descriptor.fields:
            if self.dice.random() < share:
                self._fill(made, field, depth)
        return made

    def bytes(self, descriptor: Descriptor) -> bytes:
        """Return a message on the wire, in one case of four damaged, in one of thirty deep or just noise."""
        turn = self.dice.random()
        if turn < 0.02:
            return self.dice.randbytes(self.dice.randrange(60))
        data = self.message(descriptor).SerializeToString()
        if turn < 0.035:
            return data + nested(self.dice.choice([30, 33, 99, 101, 1000, 20_000]))
        return self._damaged(data) if turn < 0.25 else data

    def _damaged(self, data: bytes) -> bytes:
        damaged = bytearray(data)
        for _ in range(self.dice.randrange(1, 4)):
            at = self.dice.randrange(len(damaged) + 1)
            kind = self.dice.randrange(4)
            if kind == 0:
                damaged[at:at] = self.dice.randbytes(self.dice.randrange(1, 4))
            elif kind == 1:
                del damaged[at : at + self.dice.randrange(1, 9)]
            elif kind == 2 and at < len(damaged):
                damaged[at] ^= 1 << self.dice.randrange(8)
            else:
                damaged += data[:at]
        return bytes(damaged)

    def _fill(self, made: Any, field: FieldDescriptor, depth: int) -> None:
        if field.is_repeated:
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                self._fill_map(getattr(made, field.name), field.message_type, depth)
                return
            for _ in range(self.dice.choice((0, 1, 1, 2, 3))):
                if field.message_type is not None:
                    getattr(made, field.name).append(self._nested(field.message_type, depth))
                else:
                    getattr(made, field.name).append(self._scalar(field))
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(self._nested(field.message_type, depth))
        else:
            setattr(made, field.name, self._scalar(field))

    def _fill_map(self, place: Any, entry: Descriptor, depth: int) -> None:
        value = entry.fields_by_name["value"]
        for _ in range(self.dice.randrange(3)):
            key = self._scalar(entry.fields_by_name["key"])
            if value.message_type is not None:
                place[key].CopyFrom(self._nested(value.message_type, depth))
            else:
                place[key] = self._scalar(value)

    def _nested(self, descriptor: Descriptor, depth: int) -> Message:
        if depth > 4:
            return GetMessageClass(descriptor)()
        if descriptor.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            made: Any = GetMessageClass(descriptor)()
            made.seconds = self.dice.choice([0, 1, -1, 1, 60, 315_576_000_001, 2**63 - 1, -(2**63)])
            made.nanos = self.dice.choice([0, 0, 1, -1, 999_999_999, 2**31 - 1])
            return made
        return self.message(descriptor, depth + 1)

    def _scalar(self, field: FieldDescriptor) -> Any:
        kind = field.type
        if kind == TYPES.TYPE_STRING:
            if field.name.endswith("_id") or field.name.endswith("_ids"):
                if self.dice.random() < 0.6:
                    return self.dice.choice(self.known)
            elif self.dice.random() < 0.001:
                return HUGE
            return self.dice.choice(TEXTS)
        if kind == TYPES.TYPE_BYTES:
            if field.name in ("trace_id", "span_id", "parent_span_id") and self.dice.random() < 0.7:
                return self.dice.randbytes(16 if field.name == "trace_id" else 8)
            return self.dice.choice(JSON)
        if kind == TYPES.TYPE_BOOL:
            return self.dice.random() < 0.5
        if kind in (TYPES.TYPE_DOUBLE, TYPES.TYPE_FLOAT):
            return self.dice.choice(DOUBLES)
        if kind == TYPES.TYPE_ENUM:
            return self.dice.choice([0, 1, 2, 3, 4, 5, 6, 7, 99, -1, 2**31 - 1])
        value = self.dice.choice(INTEGERS)
        unsigned = kind in (
            TYPES.TYPE_UINT32,
            TYPES.TYPE_UINT64,
            TYPES.TYPE_FIXED32,
            TYPES.TYPE_FIXED64,
        )
        if field.cpp_type in (TYPES.CPPTYPE_INT32, TYPES.CPPTYPE_UINT32):
            value = (value + 2**31) % 2**32 - 2**31
            return value % 2**32 if unsigned else value
        return value % 2**64 if unsigned else value


@cache  # few depths, and the deep ones take long to build
def nested(depth: int) -> bytes:
    """Return field 1, and in it field 1, and so on."""
    data = b""
    for _ in range(depth):
        size, length = len(data), bytearray()
        while size > 0x7F:
            length.append(size & 0x7F | 0x80)
            size >>= 7
        length.append(size)
        data = b"\x0a" + bytes(length) + data
    return data
