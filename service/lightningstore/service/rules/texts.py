"""Truncates texts. Pure."""

from __future__ import annotations

#: Maximum length of a text from a caller where errors, answers and log lines repeat it.
SHOWN_LENGTH = 300
#: Space for the marker that replaces the omitted text.
_MARKER_BYTES = 40


def shortened(text: str, limit: int) -> str:
    """Return a text of at most `limit` bytes in UTF-8: of a longer text the beginning and the end."""
    if len(text) <= limit // 4:
        return text
    data = text.encode(errors="replace")
    if len(data) <= limit:
        return text
    half = (limit - _MARKER_BYTES) // 2
    left_out = len(data) - 2 * half
    beginning, end = data[:half].decode(errors="ignore"), data[-half:].decode(errors="ignore")
    return f"{beginning} [{left_out} bytes omitted] {end}"
