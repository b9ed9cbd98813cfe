"""Several server processes over one PostgreSQL database, each of which can be killed, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Self

import asyncpg

from tests.faults.lab import COMMAND, WAIT_SECONDS
from tests.ports import port_of, reserve
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
#: Seconds of a server's lease: the default of the server, and a short one, with more takeovers in the same time.
LEASE_SECONDS, SHORT_LEASE = 5.0, 2.0
#: Keeps every commit: the servers keep the last ones.
ARCHIVE = """
CREATE TABLE archive (place bigserial, ns bigint, seq bigint, epoch bigint);
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN INSERT INTO archive (ns, seq, epoch) VALUES (NEW.ns, NEW.seq, NEW.epoch); RETURN NULL; END $$;
CREATE TRIGGER keep AFTER INSERT ON ls_commits FOR EACH ROW EXECUTE FUNCTION keep();
"""


class ServerProcess:
    """A server on a port of its own."""

    def __init__(
        self, folder: Path, number: int, url: str, mutant: str, lease_seconds: float
    ) -> None:
        """Take a folder for the log, the database's URL, the parts that the server lacks (mutant.py), and the lease."""
        self._folder, self._url = folder, url
        self._variant = {"MUTANT": mutant, "LEASE_SECONDS": str(lease_seconds)}
        self._is_usual = not mutant and lease_seconds == LEASE_SECONDS
        self._log = folder / f"server-{number}.log"
        self.kept = reserve()
        self.address = f"127.0.0.1:{port_of(self.kept)}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it. It may take a while until it answers."""
        port = self.address.rpartition(":")[2]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNINGSTORE_")}
        program = [COMMAND]
        if not self._is_usual:
            program = [sys.executable, "-m", "tests.faults.mutant"]
            environment |= self._variant | {"PYTHONPATH": str(ROOT)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *program,
                    "serve",
                    "--port",
                    port,
                    "--http-port",
                    "0",
                    "--database-url",
                    self._url,
                ],
                cwd=self._folder,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended."""
        return self.process is not None and self.process.poll() is None

    def wait_until_ready(self) -> None:
        """Return when it listens."""
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert b" on " in line, f"{line!r}, and in the log: {self.log()[-2000:]}"

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def end(self, number: int) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        self.signal(number)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end; returns the exit code."""
        assert self.process is not None
        code = self.process.wait(WAIT_SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code

    def log(self) -> str:
        """Return what it wrote to stderr."""
        return self._log.read_text()


class ServerCluster:
    """Servers over a database of the tests' own."""

    def __init__(
        self,
        folder: Path,
        postgres: PostgresServer,
        mutant: str = "",
        *,
        count: int = 3,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        self.postgres = postgres
        self.lease_seconds = lease_seconds
        self.servers = [
            ServerProcess(folder, i, postgres.url, mutant, lease_seconds) for i in range(count)
        ]

    async def __aenter__(self) -> Self:
        first, *others = self.servers
        await self.start(first)
        connection = await asyncpg.connect(self.postgres.url)
        await connection.execute(ARCHIVE)
        await connection.close()
        await asyncio.gather(*[self.start(server) for server in others])
        return self

    async def __aexit__(self, *_: object) -> None:
        for server in self.servers:
            if server.is_running:
                server.signal(signal.SIGCONT)
                server.end(signal.SIGKILL)
            server.kept.close()

    @property
    def addresses(self) -> list[str]:
        """The addresses of the servers."""
        return [server.address for server in self.servers]

    async def start(self, server: ServerProcess) -> None:
        """Start a server and return when it listens."""
        server.start()
        await asyncio.to_thread(server.wait_until_ready)

    async def restart(self, server: ServerProcess, number: int) -> None:
        """End a server with a signal, and start it again when others may have taken over."""
        await asyncio.to_thread(server.end, number)
        await self.start(server)

    async def pause(self, server: ServerProcess, seconds: float) -> None:
        """Stop a server as a machine that hangs, and let it continue."""
        server.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            server.signal(signal.SIGCONT)

    async def terminate_back_ends(self) -> None:
        """Break all connections of all servers to the database."""
        await self.query(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name = 'lightningstore'"
        )

    async def crash_database(self, seconds: float) -> None:
        """Crash the database and start it after a while."""
        await asyncio.to_thread(self.postgres.stop, "immediate")
        await asyncio.sleep(seconds)
        await asyncio.to_thread(self.postgres.start)

    async def query(self, text: str, *values: object) -> list[Any]:
        """Return the rows of a query to the database."""
        connection = await asyncpg.connect(self.postgres.url)
        try:
            return await connection.fetch(text, *values)
        finally:
            await connection.close()

    async def owner(self, namespace: str) -> ServerProcess | None:
        """Return the server that owns a namespace, None if none does."""
        rows = await self.query(
            "SELECT s.address FROM ls_namespaces n JOIN ls_servers s ON s.id = n.owner "
            "WHERE n.name = $1 AND s.expires_at > clock_timestamp()",
            namespace,
        )
        address = rows[0]["address"] if rows else ""
        return next((server for server in self.servers if server.address == address), None)

    async def owner_after(
        self, namespace: str, former: ServerProcess | None = None
    ) -> ServerProcess:
        """Return the next owner of a namespace, as soon as there is one."""
        end = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < end:
            owner = await self.owner(namespace)
            if owner is not None and owner is not former:
                return owner
            await asyncio.sleep(0.02)
        raise AssertionError(f"nobody takes over namespace {namespace}")

    async def check_commits(self) -> int:
        """Check that each namespace has one log without a gap, whose epochs rise; returns the number of commits."""
        rows = await self.query("SELECT ns, seq, epoch FROM archive ORDER BY ns, place")
        last: dict[int, tuple[int, int]] = {}
        for row in rows:
            seq, epoch = last.get(row["ns"], (row["seq"] - 1, 0))
            assert row["seq"] == seq + 1, f"namespace {row['ns']}: {row['seq']} after {seq}"
            assert row["epoch"] >= epoch, f"namespace {row['ns']}: an old owner wrote {row['seq']}"
            last[row["ns"]] = row["seq"], row["epoch"]
        return len(rows)
