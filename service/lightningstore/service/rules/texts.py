"""Texts that must not grow without bound. Pure."""

from __future__ import annotations

#: Room for the words that stand where text was left out.
_MARKER_BYTES = 40


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` bytes of UTF-8: of a longer one its beginning and its end."""
    if len(text) <= limit // 4:
        return text
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    half = (limit - _MARKER_BYTES) // 2
    left_out = len(data) - 2 * half
    beginning, end = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{beginning} [{left_out} bytes left out] {end}"
