"""Classifies failing reads: damaged data or a failing disk. Counts them, and limits how often they are logged."""

from __future__ import annotations

import logging
import sqlite3

from lightningstore.service.rules.errors import DataDamaged, ReadFailed, StoreError

logger = logging.getLogger(__name__)

#: SQLITE_CORRUPT and SQLITE_NOTADB. Source: https://www.sqlite.org/rescode.html
_DAMAGED = (11, 26)
#: Damaged records that are remembered. Further ones are neither logged nor counted.
MOST_RECORDS = 10_000


class Damage:
    """The damaged records and failing reads of one store."""

    def __init__(self) -> None:
        self._records: set[str] = set()
        #: Number of failed reads, by query and error.
        self._reads: dict[str, int] = {}

    @property
    def count(self) -> int:
        """Number of distinct damaged records found so far."""
        return len(self._records)

    def note(self, record: str, cause: object) -> None:
        """Count a damaged record, and log it when it is found first."""
        if record not in self._records and len(self._records) < MOST_RECORDS:
            self._records.add(record)
            logger.error(
                "%s is damaged (%s): it is left out of lists, claims, watches and exports, and calls that "
                "name it fail; `lightningstore check` lists what is damaged, `check --repair` removes it",
                record,
                cause,
            )

    def failed_read(
        self, what: str, error: sqlite3.Error, disk: OSError | None = None
    ) -> StoreError:
        """Log a failed read at the 1st, 2nd, 4th, 8th … time; returns the error for the caller.

        `disk`: error of the disk itself, if SQLite reported it as damage.
        """
        kind = f"{what}: {error}"
        self._reads[kind] = count = self._reads.get(kind, 0) + 1
        if count & (count - 1) == 0:
            logger.error("the data file could not be read (%s), %d times so far", kind, count)
        if disk is not None:
            return ReadFailed(str(disk))
        return DataDamaged(str(error)) if is_damage(error) else ReadFailed(str(error))


def is_damage(error: sqlite3.Error) -> bool:
    """Return whether the content of the file is invalid, so that reading it again does not help."""
    code = getattr(error, "sqlite_errorcode", None)  # Python 3.11 and later
    if code is not None:
        return code & 0xFF in _DAMAGED
    # Python's module itself raises the last one, without a code, for a TEXT that is not UTF-8.
    return any(text in str(error) for text in ("malformed", "not a database", "decode to UTF-8"))
