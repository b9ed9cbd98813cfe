"""An open namespace, and how its rows are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lightningstore.service.rules.errors import OwnershipLost, StorageFailed
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import Ownership
from lightningstore.service.storage.postgres.rows import Damage


@dataclass
class Session:
    """An open namespace: its ownership, and the last commit."""

    owned: Ownership
    seq: int
    counters: bytes
    #: Bytes of spans and inputs.
    bytes_: int

    def until(self) -> float:
        """Return until when a lost connection is replaced: while no other server can own the namespace."""
        return self.owned.owned_until


class NamespaceReads:
    """What the parts of the back end that read share: the connections, the open namespace, and the damage found."""

    def __init__(self, database: Database) -> None:
        """Take the connections. The namespace is not open yet."""
        self.database = database
        self._session: Session | None = None
        #: Why another server owns the namespace, once that is known.
        self._lost: OwnershipLost | None = None
        self._damage = Damage()

    @property
    def _opened(self) -> Session:
        if self._lost is not None:
            raise self._lost
        if self._session is None:
            raise StorageFailed("the storage is closed")
        return self._session

    async def _point(self, text: str, *values: Any) -> list[Any]:
        """Return the rows of a short query."""
        session = self._opened
        return await self.database.points.fetch(text, (session.owned.ns, *values), session.until)

    async def _scan(self, text: str, *values: Any) -> list[Any]:
        """Return the rows of a query that may take long."""
        session = self._opened
        return await self.database.scanners.fetch(text, (session.owned.ns, *values), session.until)
