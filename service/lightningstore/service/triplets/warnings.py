"""What could not be read in a trace, and what the trace has instead of calls."""

from __future__ import annotations

from collections.abc import Iterable

from lightningstore.v1.triplet_pb2 import TripletWarning

MOST_WARNINGS = 100
#: Names and keys of spans that a warning lists, and the characters of each.
_SHOWN_NAMES, _SHOWN_KEYS, _SHOWN_TEXT = 8, 16, 60


class Warnings:
    """Warnings of one trace: all are counted, the first by sequence id are kept."""

    def __init__(self) -> None:
        self.count = 0
        #: Spans that are calls, whether they become triplets or not.
        self.calls = 0
        self._kept: list[tuple[int, str, str, str]] = []
        self._names = _Smallest(_SHOWN_NAMES)
        self._keys = _Smallest(_SHOWN_KEYS)

    def add(self, where: tuple[int, bytes], attribute: str, message: str) -> None:
        """Note a warning about the span with this sequence id and span id."""
        self.count += 1
        self._kept.append((where[0], where[1].hex(), attribute[:256], message))
        if len(self._kept) >= 10 * MOST_WARNINGS:
            self._kept = sorted(self._kept)[:MOST_WARNINGS]

    def note(self, name: str, keys: Iterable[str]) -> None:
        """Note the name and the attribute keys of a span, for `describe`."""
        self._names.add(name)
        for key in keys:
            self._keys.add(key)

    def describe(self) -> str:
        """Return which spans were seen, in a bounded text."""
        return f"span names: {self._names}; attribute keys: {self._keys}"

    def messages(self) -> list[TripletWarning]:
        """Return the first warnings."""
        return [
            TripletWarning(sequence_id=number, span_id=span_id, attribute=key, message=text)
            for number, span_id, key, text in sorted(self._kept)[:MOST_WARNINGS]
        ]


class _Smallest:
    """The smallest of many texts, so that the order in which they come does not matter."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._texts: set[str] = set()
        self._limit = ""

    def add(self, text: str) -> None:
        text = text[:_SHOWN_TEXT]
        if text in self._texts or (len(self._texts) > self._count and text > self._limit):
            return
        self._texts.add(text)
        if len(self._texts) > self._count + 1:
            self._texts.remove(max(self._texts))
        self._limit = max(self._texts)

    def __str__(self) -> str:
        found = sorted(self._texts)
        more = ", …" if len(found) > self._count else ""
        return ", ".join(found[: self._count]) + more if found else "none"
