"""What is said of lost spans: the first of a kind at once, the others in a summary a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("lightningstore.client.exporter")

#: Seconds between two lines about losses of the same kind, at least.
PERIOD = 60.0


@dataclass
class _Kind:
    """Losses of one kind: when the last line about them was written, and what came since."""

    said_at: float
    unsaid: int
    line: tuple[int, str, str]


class Losses:
    """Counts what spans suffer, and logs it without flooding the log. Threads may share it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}
        #: Spans dropped so far.
        self.dropped = 0

    def drop(self, count: int, kind: str, why: str, level: int = logging.WARNING) -> None:
        """Count dropped spans. Those of one kind share a line; `why` is for people."""
        with self._lock:
            self.dropped += count
        self.note(count, kind, "dropped", why, level)

    def note(
        self, count: int, kind: str, verb: str, why: str, level: int = logging.WARNING
    ) -> None:
        """Log what happened to spans, at once or with the next summary."""
        line = (level, verb, why)
        with self._lock:
            now = self._now()
            found = self._kinds.get(kind)
            if found is not None and now - found.said_at < PERIOD:
                found.unsaid += count
                found.line = line
                return
            count += 0 if found is None else found.unsaid
            self._kinds[kind] = _Kind(now, 0, line)
        self._say(count, line)

    def until_summary(self) -> float | None:
        """Return the seconds until `summarize` has something to say; None while it has nothing."""
        with self._lock:
            times = [kind.said_at for kind in self._kinds.values() if kind.unsaid]
            return max(min(times) + PERIOD - self._now(), 0.0) if times else None

    def summarize(self, *, everything: bool = False) -> None:
        """Log what has been counted but not said: what has waited for a period, or everything."""
        lines: list[tuple[int, tuple[int, str, str]]] = []
        with self._lock:
            now = self._now()
            for kind in self._kinds.values():
                if kind.unsaid and (everything or now - kind.said_at >= PERIOD):
                    lines.append((kind.unsaid, kind.line))
                    kind.unsaid, kind.said_at = 0, now
        for count, line in lines:
            self._say(count, line)

    def _say(self, count: int, line: tuple[int, str, str]) -> None:
        level, verb, why = line
        logger.log(level, "%s %d span(s): %s; %d dropped so far", verb, count, why, self.dropped)
