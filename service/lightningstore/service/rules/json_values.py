"""How much JSON is read. Counts the values of a text before it is parsed: each takes about 100 bytes of memory. Pure."""

from __future__ import annotations

import re

#: Maximum number of values in a JSON text that is parsed: each takes 100 bytes of memory, and a span with 50 attributes
#: has about 100.
MAX_VALUES = 400_000
#: Levels of wrappers and lists in which the messages of a model are looked for.
MAX_MESSAGE_LEVELS = 12
_QUOTE = ord('"')
#: Pieces of a text inside and outside of strings, of a size that is searched in a millisecond: no search of a whole
#: text, which holds the interpreter, takes longer.
_IN_STRING = re.compile(rb'(?:[^"\\]{1,4096}+|\\.){0,256}+', re.DOTALL)
_OUTSIDE = re.compile(rb'[^"]{0,65536}+')
_PIECE_BYTES = 1 << 20


def has_more_values(data: bytes, limit: int) -> bool:
    """Return whether a JSON text has more than `limit` values."""
    # One of these precedes each value of an array or object.
    return _has_more(data, (b",", b"["), limit)


def has_more_objects(data: bytes, limit: int) -> bool:
    """Return whether a JSON text has more than `limit` objects."""
    return _has_more(data, (b"{",), limit)


def _has_more(data: bytes, marks: tuple[bytes, ...], limit: int) -> bool:
    """Return whether there are more than `limit` of the marks outside of strings."""
    if _count(data, marks, 0, len(data)) <= limit:  # Those in strings are counted too.
        return False
    count = at = 0
    is_string = False
    while at < len(data):
        piece = (_IN_STRING if is_string else _OUTSIDE).match(data, at)
        end = piece.end() if piece is not None else at
        if not is_string:
            count += _count(data, marks, at, end)
            if count > limit:
                return True
        if end < len(data) and data[end] == _QUOTE:
            is_string = not is_string
            end += 1
        at = max(end, at + 1)  # A backslash that ends the text matches nothing.
    return False


def _count(data: bytes, marks: tuple[bytes, ...], start: int, stop: int) -> int:
    """Return the number of marks in a part of a text."""
    return sum(
        data.count(mark, at, min(at + _PIECE_BYTES, stop))
        for at in range(start, stop, _PIECE_BYTES)
        for mark in marks
    )
