"""Protobuf's wire format, for messages that are forwarded without being built. Pure.

Source: https://protobuf.dev/programming-guides/encoding/. A message is the concatenation of its
fields, so messages can be joined and extended as bytes.
"""

from __future__ import annotations

from collections.abc import Iterator

VARINT = 0
LENGTH_DELIMITED = 2
#: Sizes of the wire types with a fixed length, in bytes.
FIXED = {1: 8, 5: 4}
_SHORT = tuple(bytes([number]) for number in range(128))


def varint(number: int) -> bytes:
    """Return a non-negative number as a base-128 varint."""
    if 0 <= number < 0x80:
        return _SHORT[number]
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the varint at a position, and the position after it.

    Raises:
        IndexError: The data ends within the varint.
    """
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def field(number: int, payload: bytes) -> bytes:
    """Return one length-delimited field (bytes, string, message, packed numbers)."""
    return header(number, len(payload)) + payload


def header(number: int, size: int) -> bytes:
    """Return the tag and length of a length-delimited field."""
    return varint(number << 3 | LENGTH_DELIMITED) + varint(size)


def frame(data: bytes, number: int) -> int | None:
    """Return the start of the payload of a field if the data is that single field, else None."""
    if not data or data[0] != number << 3 | LENGTH_DELIMITED:
        return None
    length, at = read_varint(data, 1)
    return at if at + length == len(data) else None


def fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield number, begin, start of the payload, and end of each field of a message, in order.

    `at` and `end` delimit the message within the data. Raises ValueError if it is malformed.
    """
    try:
        while at < end:
            begin = at
            key = data[at]
            at += 1
            if key > 0x7F:
                key, at = read_varint(data, begin)
            kind = key & 7
            if kind == LENGTH_DELIMITED:
                length = data[at]
                at += 1
                if length > 0x7F:
                    length, at = read_varint(data, at - 1)
                start, at = at, at + length
            elif kind == VARINT:
                start = at
                while data[at] > 0x7F:
                    at += 1
                at += 1
            elif kind in FIXED:
                start, at = at, at + FIXED[kind]
            else:
                raise ValueError(f"wire type {kind} at byte {begin}")
            if at > end:
                raise ValueError(f"the field at byte {begin} ends after its message")
            yield key >> 3, begin, start, at
    except IndexError:
        raise ValueError("the message ends within a field") from None
