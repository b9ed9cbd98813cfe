"""What a server needs to know about the servers that it shares namespaces with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import grpc.aio
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.rpc.forwarding import Forwarding
from lightningstore.service.storage.catalog import Catalog


class Member(NamedTuple):
    """One of the servers."""

    address: str
    #: Names of the namespaces that it owns and serves.
    namespaces: tuple[str, ...]
    is_draining: bool = False


class Cluster(Protocol):
    """The servers that share namespaces, as one of them sees them. It is the `Placement` of that server."""

    @property
    def catalog(self) -> Catalog:
        """All namespaces, the default one included."""

    @property
    def location(self) -> str:
        """Where the data is, for people."""

    @property
    def is_usable(self) -> bool:
        """Whether this server can serve namespaces, even if it serves none at the moment."""

    @property
    def listeners(self) -> Sequence[str]:
        """Addresses to listen on for other servers alone, in gRPC's notation, without encryption."""

    @property
    def advertised(self) -> str:
        """The address at which clients and other servers reach this server; empty: the one that it listens on.

        It may be another port than the server's, if that leads to any of several processes.
        """

    def elsewhere(self, name: str) -> str:
        """Return the address of the server that calls of a namespace go to, "" for this one."""

    async def refresh(self) -> None:
        """Look at all namespaces that the servers share. Raises StorageFailed."""

    async def discover(self, name: str) -> None:
        """Look for a namespace that this server does not know. Raises StorageFailed."""

    async def members(self) -> list[Member]:
        """Return the live servers. Raises StorageFailed."""

    async def move(self, name: str, address: str) -> None:
        """Choose the server of a namespace; "": the servers choose. Raises NamespaceNotFound, FieldInvalid, StorageFailed."""

    def connect(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a channel to another server."""

    async def start(self, address: str, directory: Directory, forwarding: Forwarding, /) -> None:
        """Join the servers under an address, and open the namespaces that this server should own.

        Raises StorageUnusable.
        """

    async def drain(self) -> None:
        """Own no more namespaces: the server is shutting down."""

    async def stop(self) -> None:
        """Leave the servers, after all stores have been closed."""
