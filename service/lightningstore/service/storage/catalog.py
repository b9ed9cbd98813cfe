"""The contract of a catalog: the namespaces of a server besides the default one, each of which is a store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.memory import MemoryStorage


@dataclass(frozen=True)
class Found:
    """What a catalog knows about a namespace that is not open."""

    name: str
    store_id: str = ""
    settings: bytes = b""
    #: Whether the store has live records, or cannot tell without being opened. Their deadlines may have passed.
    live: bool = True
    #: Start time of the oldest finished rollout in nanoseconds; 0: there is none.
    oldest_ns: int = 0
    #: Why the store cannot be read; empty if it can.
    failure: str = ""


class Catalog(Protocol):
    """Which namespaces exist, and their storages. All methods raise CatalogFailed.

    A namespace exists from the moment at which `create` returns until `delete` is called, whatever ends the process in
    between. One that a crash left half created or half deleted is not returned by `survey`, which removes its rest.
    """

    async def survey(self) -> list[Found]:
        """Return all namespaces except the default one, without opening their stores."""

    def storage(self, name: str) -> Storage:
        """Return the storage of a namespace, not open yet. Opening it never creates a store."""

    async def create(self, name: str, settings: bytes) -> None:
        """Create a namespace with an empty store. Raises NamespaceExists."""

    async def delete(self, name: str) -> None:
        """Delete a namespace, whose storage is closed. Deleting a namespace that does not exist succeeds."""


class MemoryCatalog:
    """Namespaces of the memory back end."""

    def __init__(self) -> None:
        self._settings: dict[str, bytes] = {}

    async def survey(self) -> list[Found]:
        """Return the namespaces: none in a new process."""
        return [Found(name, settings=settings) for name, settings in self._settings.items()]

    def storage(self, name: str) -> Storage:
        """Return a new, empty storage."""
        return MemoryStorage(self._settings[name])

    async def create(self, name: str, settings: bytes) -> None:
        """Create a namespace."""
        self._settings[name] = settings

    async def delete(self, name: str) -> None:
        """Delete a namespace."""
        self._settings.pop(name, None)
