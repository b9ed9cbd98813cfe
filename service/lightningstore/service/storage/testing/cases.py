"""What all cases of the storage suite share: how a case opens, reopens and closes storages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from lightningstore.service.storage.base import Snapshot, Storage
from lightningstore.v1.statistics_pb2 import DURABILITY_NONE

Case = TypeVar("Case", bound=Callable[..., Coroutine[Any, Any, None]])


class Cases(ABC):
    """Base class of all groups of cases. A case is an `async def test_…(self, storage)`.

    `storage` is open and empty. A case may open more storages with the methods below; all are closed after it.
    """

    place: Path
    _made: list[Storage]

    @abstractmethod
    async def new_storage(self, place: Path) -> Storage:
        """Return a storage that is not open yet.

        Args:
            place: An empty folder of this case, which also names the store: storages with the same place
                open the same store, storages with different places different ones.

        """

    async def take_over(self, storage: Storage) -> None:  # noqa: ARG002
        """Let the ownership of an open storage end, so that another storage can open its store.

        Override it for a back end with a lease: end the lease, or wait for its end. The cases that call it are
        skipped where `owned_until` is UNLIMITED.
        """
        pytest.fail(
            "owned_until is not UNLIMITED: override take_over, which the cases of leases need"
        )

    async def damage(self, place: Path, kind: str, name: str) -> None:  # noqa: ARG002
        """Replace the stored record of a closed store by bytes that are not a message, such as one byte 255.

        Override it for a back end whose data outlive the process.

        Args:
            place: As `new_storage` takes it.
            kind: "worker", "resources", "rollout", "group" or "consumer".
            name: The id or the name of the record.

        """
        pytest.fail("override damage, which the cases of damaged records need")

    @asynccontextmanager
    async def session(self, place: Path) -> AsyncIterator[Storage]:
        """Provide an open storage for one case, and close everything that the case made."""
        self.place, self._made = place, []
        try:
            yield (await self.open_at(place))[0]
        finally:
            await self.end_session()

    async def end_session(self) -> None:
        """Close everything that the case made, the latest first."""
        for storage in reversed(self._made):
            await storage.close()

    async def make(self, place: Path | None = None) -> Storage:
        """Return a storage that is not open yet, at the place of the case unless another is named."""
        folder = place or self.place
        folder.mkdir(parents=True, exist_ok=True)
        storage = await self.new_storage(folder)
        self._made.append(storage)
        return storage

    async def open_at(self, place: Path) -> tuple[Storage, Snapshot]:
        """Return another storage, opened, and what was in it."""
        storage = await self.make(place)
        return storage, await storage.open()

    async def reopen(self, storage: Storage) -> tuple[Storage, Snapshot]:
        """Close the storage, and open its store with another object, as the next process would.

        Skips the rest of the case where the storage declares that nothing outlives the process.
        """
        require_durable(storage)
        await storage.close()
        return await self.open_at(self.place)

    async def damaged(self, storage: Storage, kind: str, name: str) -> tuple[Storage, Snapshot]:
        """Close the storage, damage a record, and open the store again."""
        require_durable(storage)
        await storage.close()
        await self.damage(self.place, kind, name)
        return await self.open_at(self.place)


def large(case: Case) -> Case:
    """Mark a case that writes many rows or megabytes: FaultSuite leaves it out."""
    return without_faults(case)


def without_faults(case: Case) -> Case:
    """Mark a case that FaultSuite leaves out."""
    case.without_faults = True  # type: ignore[attr-defined]
    return case


def require_durable(storage: Storage) -> None:
    """Skip the rest of the case where the storage declares that nothing outlives the process."""
    if storage.durability == DURABILITY_NONE:
        pytest.skip("the storage declares DURABILITY_NONE")
