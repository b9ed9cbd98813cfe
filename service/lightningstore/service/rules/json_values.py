"""Counts the values of a JSON text before it is parsed: each takes about 100 bytes of memory. Pure."""

from __future__ import annotations

import re

_QUOTE = ord('"')
_TEXT_OR_NOT = re.compile(rb'[^"]++|"(?:[^"\\]++|\\.)*+"', re.DOTALL)


def has_more_values(data: bytes, limit: int) -> bool:
    """Tell whether a JSON text holds more than `limit` values."""
    # Values in arrays and objects are preceded by one of these. Texts may hold commas too.
    if data.count(b",") + data.count(b"[") <= limit:
        return False
    count = 0
    for part in _TEXT_OR_NOT.finditer(data):
        if data[part.start()] == _QUOTE:
            continue
        count += data.count(b",", *part.span()) + data.count(b"[", *part.span())
        if count > limit:
            return True
    return False
