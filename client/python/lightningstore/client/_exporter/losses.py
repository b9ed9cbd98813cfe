"""Log lines about lost spans: the first of a kind at once, then a summary per minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

logger = logging.getLogger("lightningstore.client.exporter")

#: Minimum seconds between two lines about losses of the same kind.
PERIOD = 60.0


@dataclass
class _Kind:
    """Losses of one kind: time of the last line, and the losses since."""

    said_at: float
    unsaid: int
    line: tuple[int, str, str]


class Losses:
    """Counts lost and changed spans, and logs them without flooding the log. Threads may share it."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._kinds: dict[str, _Kind] = {}
        #: Spans dropped so far.
        self.dropped = 0

    def drop(self, count: int, kind: str, why: str, level: int = logging.WARNING) -> None:
        """Count dropped spans. Those of one kind share a log line. `why` is for people."""
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
            known = self._kinds.get(kind)
            if known is not None and now - known.said_at < PERIOD:
                known.unsaid += count
                known.line = line
                return
            count += 0 if known is None else known.unsaid
            self._kinds[kind] = _Kind(now, 0, line)
        self._say(count, line)

    def until_summary(self) -> float | None:
        """Return the seconds until `summarize` has a line to log. None: nothing to log."""
        with self._lock:
            times = [kind.said_at for kind in self._kinds.values() if kind.unsaid]
            return max(min(times) + PERIOD - self._now(), 0.0) if times else None

    def summarize(self, *, everything: bool = False) -> None:
        """Log losses that have not been logged: those older than a period, or everything."""
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
