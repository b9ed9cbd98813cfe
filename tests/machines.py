"""Several servers that share namespaces, in this process."""

from __future__ import annotations

import math
import socket
import tempfile
import uuid
from pathlib import Path
from typing import Protocol

import asyncpg
import grpc.aio
from lightningstore.service.cluster.cluster import Cluster
from lightningstore.service.cluster.processes import Process, ProcessCluster
from lightningstore.service.cluster.servers import DatabaseCluster
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server
from lightningstore.service.storage.postgres.database import Database
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest

from tests.namespaced import Caller
from tests.postgres import PostgresServer


class Machines(Protocol):
    """Servers that share namespaces."""

    servers: list[Server]
    callers: list[Caller]

    async def start(self, count: int = 2) -> None:
        """Start servers."""

    async def stop(self) -> None:
        """Stop all servers."""

    async def close(self) -> None:
        """Remove the data."""

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the servers."""

    async def owner(self, name: str) -> int:
        """Return the index of the server that a namespace belongs to, which is open afterwards."""


class _Running:
    """The servers that run, and a channel to each."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.callers: list[Caller] = []
        self._channels: list[grpc.aio.Channel] = []

    async def add(self, cluster: Cluster, **settings: object) -> Server:
        """Start one more server."""
        config = Config(otlp_http_port=0, grace=0.1, **settings)
        server = Server(None, config, clock=SystemClock(), cluster=cluster)
        await server.start()
        self.servers.append(server)
        channel = grpc.aio.insecure_channel(server.address)
        self._channels.append(channel)
        self.callers.append(Caller(channel))
        return server

    async def stop(self) -> None:
        """Stop all servers."""
        for channel in self._channels:
            await channel.close()
        for server in self.servers:
            await server.stop(0.1)
        self.servers, self.callers, self._channels = [], [], []

    async def owner(self, name: str) -> int:
        """Return the index of the server that a namespace belongs to, which is open afterwards."""
        info = await self.callers[0].call("GetServerInfo", GetServerInfoRequest(), name)
        return [server.address for server in self.servers].index(info.owner)


class Processes(_Running):
    """Servers over a folder, as the processes of one machine are."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._sockets = tempfile.TemporaryDirectory(prefix="ls-")
        self._ports = [socket.socket() for _ in range(2)]
        for reserved in self._ports:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind(("127.0.0.1", 0))

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the servers."""
        return tuple(f"127.0.0.1:{reserved.getsockname()[1]}" for reserved in self._ports)

    async def start(self, count: int = 2) -> None:
        """Start both servers."""
        for index, address in enumerate(self.addresses[:count]):
            process = Process(index, self.addresses, self._sockets.name)
            port = int(address.rpartition(":")[2])
            await self.add(ProcessCluster(process, self._folder), port=port)

    async def close(self) -> None:
        """Free the ports and the folder of sockets."""
        for reserved in self._ports:
            reserved.close()
        self._sockets.cleanup()


class Servers(_Running):
    """Servers over a database of their own."""

    def __init__(
        self,
        postgres: PostgresServer,
        *,
        lease_seconds: float = 5.0,
        settle_seconds: float = math.inf,
    ) -> None:
        """Take the database server. Unless told otherwise, namespaces stay where they are."""
        super().__init__()
        self._lease_seconds, self._settle_seconds = lease_seconds, settle_seconds
        self._postgres = postgres
        self._name = f"d{uuid.uuid4().hex[:16]}"

    @property
    def url(self) -> str:
        """URL of the database."""
        return self._postgres.url.removesuffix("postgres") + self._name

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses of the servers."""
        return tuple(server.address for server in self.servers)

    async def start(self, count: int = 2) -> None:
        """Create the database unless it exists, and start servers."""
        admin = await asyncpg.connect(self._postgres.url)
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", self._name):
            await admin.execute(f"CREATE DATABASE {self._name}")
        await admin.close()
        for _ in range(count):
            database = Database(self.url, lease_seconds=self._lease_seconds)
            cluster = DatabaseCluster(database, SystemClock(), settle_seconds=self._settle_seconds)
            await self.add(cluster, port=0)

    async def close(self) -> None:
        """Drop the database."""
        admin = await asyncpg.connect(self._postgres.url)
        await admin.execute(f"DROP DATABASE {self._name} WITH (FORCE)")
        await admin.close()
