"""Protobuf's wire format, where a message need not be built to be sent on. Pure.

Source: https://protobuf.dev/programming-guides/encoding/. A message is its fields one after the other, so
messages can be put together, and extended, as bytes.
"""

from __future__ import annotations

LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """Return a non-negative number in base 128."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at a place, and the place behind it. Raises IndexError at the end of the data."""
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
    return varint(number << 3 | LENGTH_DELIMITED) + varint(len(payload)) + payload


def frame(data: bytes, number: int) -> int | None:
    """Return where the payload of a field begins, if the data is nothing but that field, once."""
    if not data or data[0] != number << 3 | LENGTH_DELIMITED:
        return None
    length, at = read_varint(data, 1)
    return at if at + length == len(data) else None
