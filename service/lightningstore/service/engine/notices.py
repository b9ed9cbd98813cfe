"""Rate-limited log lines: the first at once, then a summary per minute."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

from lightningstore.service.rules.texts import SHOWN_LENGTH

#: Minimum seconds between two lines.
QUIET = 60.0


class Notices:
    """Counts events of one kind by reason, and logs the counts at most once in QUIET seconds."""

    def __init__(self, logger: logging.Logger, what: str) -> None:
        """Set the logger, and the name of the events, such as "spans were rejected"."""
        self._logger = logger
        self._what = what
        #: Events by reason since the start, for metrics.
        self.total: Counter[str] = Counter()
        self._unsaid: Counter[str] = Counter()
        self._examples: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None

    def note(self, reason: str, count: int, example: str) -> None:
        """Count events. `reason` is one of a few words; `example` is for people."""
        self.total[reason] += count
        self._unsaid[reason] += count
        self._examples[reason] = example[:SHOWN_LENGTH]
        if self._timer is None:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(QUIET, self._due)

    def flush(self) -> None:
        """Log what has not been logged yet."""
        if not self._unsaid:
            return
        count = self._unsaid.total()
        reasons = "; ".join(
            f"{n} {reason} ({self._examples[reason]})" for reason, n in self._unsaid.most_common()
        )
        self._logger.warning("%d %s: %s", count, self._what, reasons)
        self._unsaid.clear()
        self._examples.clear()

    def close(self) -> None:
        """Log what is left, and start no further timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.flush()

    def _due(self) -> None:
        self._timer = None
        if self._unsaid:
            self.flush()
            self._timer = asyncio.get_running_loop().call_later(QUIET, self._due)
