"""The last commits that this server has answered, which the database must still have.

A database goes back in time when an asynchronous replica is promoted, or an older backup is restored. Connections do not
survive that, so the servers compare what they know with the database after each new connection.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from lightningstore.service.storage.postgres.lease import SQL
from lightningstore.service.storage.postgres.link import Connection

logger = logging.getLogger(__name__)


class Commit(NamedTuple):
    """A commit of a namespace."""

    epoch: int
    seq: int


class Missing(NamedTuple):
    """A namespace that lacks commits that were answered."""

    ns: int
    name: str
    #: The last commit that was answered, and the last one that the database has.
    answered: int
    last: int

    def report(self, store_id: str) -> None:
        """Log the loss, and the id of the store from now on."""
        logger.error(
            "namespace %s: the database went back in time: commits up to %d, which were answered, are gone after "
            "commit %d; the store is %s from now on",
            *(self.name, self.answered, min(self.last, self.answered - 1), store_id),
        )


class Answered:
    """The last answered commit of each namespace, by the namespace's number.

    Another namespace that gets the same name has another number.
    """

    def __init__(self) -> None:
        self._commits: dict[int, Commit] = {}

    def note(self, ns: int, epoch: int, seq: int) -> None:
        """Note that a commit has been answered."""
        self._commits[ns] = Commit(epoch, seq)

    def forget(self, ns: int) -> None:
        """Forget a namespace, whose loss has been noticed."""
        self._commits.pop(ns, None)

    def last(self, ns: int) -> int:
        """Return the number of the last answered commit, 0 if this server has answered none."""
        commit = self._commits.get(ns)
        return commit.seq if commit is not None else 0

    def is_gone(self, ns: int, epoch: int | None, last: int) -> bool:
        """Return whether the database lacks the last answered commit of a namespace.

        Args:
            ns: The number of the namespace.
            epoch: The epoch of the commit that the database has under that number, None if it has none.
            last: The number of the last commit in the database, which keeps only the last ones.
        """
        commit = self._commits.get(ns)
        if commit is None:
            return False
        return epoch != commit.epoch if epoch is not None else last <= commit.seq

    async def missing(self, connection: Connection) -> list[Missing]:
        """Return the namespaces that lack answered commits."""
        numbers = list(self._commits)
        known = [self._commits[ns].seq for ns in numbers]
        rows = await connection.fetch(SQL["answered"], numbers, known)
        return [
            Missing(row["ns"], row["name"], row["seq"], row["last"])
            for row in rows
            # Unless more was answered meanwhile: the next look compares that.
            if self.last(row["ns"]) == row["seq"]
            and self.is_gone(row["ns"], row["epoch"], row["last"])
        ]
