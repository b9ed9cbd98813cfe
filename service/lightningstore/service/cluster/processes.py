"""The processes of one machine over a folder of data files. Each namespace belongs to one process for good.

A process that ends is started again by its parent, and opens the same namespaces. The lock of each data file keeps a
second process out, so that a process which is slow to end and its successor cannot both write.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import grpc.aio
import msgspec
from lightningstore.service.cluster.cluster import Member
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.rpc.forwarding import Forwarding
from lightningstore.service.rules.errors import (
    FieldInvalid,
    NamespaceExists,
    NamespaceNotFound,
    StorageFailed,
    StorageUnusable,
)
from lightningstore.service.rules.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.rules.placement import server_for
from lightningstore.service.storage.sqlite.catalog import SqliteCatalog

#: Environment variable in which a parent describes a process to itself, as JSON.
VARIABLE = "LIGHTNINGSTORE_PROCESS"
#: Namespaces whose process is remembered.
_REMEMBERED = 10_000


class Process(msgspec.Struct, frozen=True):
    """One of the processes of a server."""

    #: Number of this process, counted from 0.
    index: int
    #: The addresses at which clients reach each process.
    addresses: tuple[str, ...]
    #: Folder with a socket for each process, which only this user can enter.
    sockets: str = ""
    #: Ports of the server, which all processes listen on; 0 for HTTP and for OTLP over HTTP: none.
    port: int = 0
    http_port: int = 0
    otlp_http_port: int = 0
    #: File descriptors: written to once this process serves, and read from to notice the end of the parent; -1: none.
    ready: int = -1
    parent: int = -1

    @classmethod
    def current(cls) -> Process | None:
        """Return this process as its parent describes it; None if it has no such parent."""
        text = os.environ.get(VARIABLE)
        return msgspec.json.decode(text, type=cls) if text else None

    def socket(self, index: int) -> str:
        """Return the address that the other processes call, in gRPC's notation."""
        return f"unix:{self.sockets}/{index}"


class ProcessCluster:
    """The processes over one folder, as one of them sees them."""

    def __init__(
        self, process: Process, folder: Path, *, full_sync: bool = True, compress: bool = False
    ) -> None:
        """Take this process and the folder of data files. The other arguments are those of SqliteStorage."""
        self._process = process
        self.catalog = SqliteCatalog(
            folder,
            is_ours=lambda name: not self.elsewhere(name),
            full_sync=full_sync,
            compress=compress,
        )
        self.is_usable = True
        is_one_of_several = len(process.addresses) > 1
        self.advertised = process.addresses[process.index] if is_one_of_several else ""
        self.listeners = (process.socket(process.index),) if is_one_of_several else ()
        self._directory: Directory | None = None
        self._own_address = ""
        self._index = lru_cache(_REMEMBERED)(self._chosen)

    @property
    def location(self) -> str:
        """The folder."""
        return str(self.catalog.folder)

    def elsewhere(self, name: str) -> str:
        """Return the address of the process that a namespace belongs to, "" for this one."""
        index = self._index(name)
        return "" if index == self._process.index else self._process.addresses[index]

    def _chosen(self, name: str) -> int:
        indices = [str(index) for index in range(len(self._process.addresses))]
        return int(server_for(name, indices))

    async def members(self) -> list[Member]:
        """Return the processes and the namespaces that belong to them. Raises StorageFailed."""
        names = [found.name for found in await self.catalog.survey()]
        addresses = self._process.addresses
        return [
            Member(
                addresses[index] or self._own_address,
                tuple(name for name in names if self._index(name) == index),
            )
            for index in range(len(addresses))
        ]

    async def move(self, name: str, address: str) -> None:
        """Reject to move a namespace. Raises NamespaceNotFound, FieldInvalid."""
        if name not in {found.name for found in await self.catalog.survey()}:
            raise NamespaceNotFound(name)
        if address:
            raise FieldInvalid("address", "each namespace belongs to one process for good")

    def connect(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """Return a channel to another process over its socket: what stays on this machine needs no TLS."""
        index = self._process.addresses.index(address)
        return grpc.aio.insecure_channel(self._process.socket(index), options=options)

    async def discover(self, name: str) -> None:
        """Do nothing: a namespace is created and looked for in the process that it belongs to."""

    async def refresh(self) -> None:
        """Read what other processes have created, changed or deleted. Raises StorageFailed."""
        if self._directory is not None:
            self._directory.synchronise(await self.catalog.survey())

    async def start(self, address: str, directory: Directory, _: Forwarding, /) -> None:
        """Create the default namespace if it is missing, and open what has live records. Raises StorageUnusable."""
        self._directory, self._own_address = directory, address
        try:
            if not self.elsewhere(DEFAULT_NAMESPACE):
                await self.catalog.create(DEFAULT_NAMESPACE, b"")
        except NamespaceExists:
            pass
        except StorageFailed as error:
            raise StorageUnusable(error.message) from error
        found = await self.catalog.survey()
        directory.synchronise(found)
        directory.open_soon(
            [each.name for each in found if each.live and not self.elsewhere(each.name)]
        )

    async def drain(self) -> None:
        """Do nothing: no other process takes the namespaces of this one."""

    async def stop(self) -> None:
        """Do nothing: the parent removes the sockets."""
