"""Texts for a terminal or a picture: durations, characters that only show, and how many cells they take. Pure."""

from __future__ import annotations

from unicodedata import category, east_asian_width

ELLIPSIS = "…"
_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""Return a text in which no character does anything but show: spans may be anybody's. A line break is \n.

    Control characters would move a terminal's cursor, and XML cannot hold them; others turn the direction
    of writing round.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return _ESCAPES.get(character) or f"\\x{ord(character):02x}"


def duration_text(nanoseconds: int) -> str:
    """Return a duration in the unit that suits it."""
    if not nanoseconds:
        return "0"
    for unit, size in (("ns", 1), ("µs", 1000), ("ms", 10**6)):
        if nanoseconds < 1000 * size:
            return f"{nanoseconds / size:.3g} {unit}"
    seconds = nanoseconds / 1e9
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {seconds} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min"


def cells(text: str) -> int:
    """Return how many cells of a terminal a text takes: wide characters two, combining marks none."""
    return len(text) if text.isascii() else sum(map(_cells, text))


def _cells(character: str) -> int:
    if category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if east_asian_width(character) in "WF" else 1


def cut_end(text: str, room: int) -> str:
    """Return a text in at most `room` cells, with an ellipsis in place of its end."""
    if cells(text) <= room:
        return text
    return _head(text, room - 1) + ELLIPSIS


def cut_middle(text: str, room: int) -> str:
    """Return a text in at most `room` cells, with an ellipsis in its middle: ids differ at either end."""
    if cells(text) <= room:
        return text
    tail = _head(text[::-1], (room - 1) // 2)[::-1]
    return _head(text, room - 1 - cells(tail)) + ELLIPSIS + tail


def _head(text: str, room: int) -> str:
    """Return as much of the beginning as takes at most `room` cells."""
    for at, character in enumerate(text):
        room -= _cells(character)
        if room < 0:
            return text[:at]
    return text
