"""A server on one port and one file that is killed, restarted, starved of disk, and asked how it is."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.ports import port_of, reserve

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = str(Path(sys.executable).parent / "lightningstore")
WAIT_SECONDS = 30.0


def until(what: str, test, seconds: float = WAIT_SECONDS):
    """Return the result of `test` once it is true. For events in another process."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = test()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {what}")


class Lab:
    """One data file, and the server over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.db = folder / "store.db"
        self._kept = reserve()
        self.port = port_of(self._kept)
        self.address = f"127.0.0.1:{self.port}"
        self._control = folder / "fault"
        self._hit = folder / "fault.hit"
        self._process: subprocess.Popen[bytes] | None = None
        self._log = (folder / "server.log").open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.kill()
        self._kept.close()
        self._log.close()

    def start(
        self,
        *options: str,
        breakable: bool = False,
        journal: Path | None = None,
        mutant: str = "",
    ) -> None:
        """Start the server and return when it listens.

        `breakable` lets system calls on the file fail; `journal` has all that is done to it written down; `mutant`
        names what the server lacks (mutant.py).
        """
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNINGSTORE_")}
        if breakable or journal is not None:
            environment |= self.breaking(journal)
        program = [COMMAND]
        if mutant:
            program = [sys.executable, "-m", "tests.faults.mutant"]
            environment |= {"MUTANT": mutant, "PYTHONPATH": str(ROOT)}
        where = ("--port", str(self.port), "--http-port", "0", "--db", str(self.db))
        arguments = [*program, "serve", *where, *options]
        self._process = subprocess.Popen(
            arguments, cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=self._log
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert b" on " in line, f"{line!r}, and in the log: {self.log()[-2000:]}"

    def breaking(self, journal: Path | None = None) -> dict[str, str]:
        """Return the environment in which system calls on the data file can be made to fail."""
        environment = {
            "LD_PRELOAD": str(shim(self.folder)),
            "FAULT_CONTROL": str(self._control),
            "FAULT_PATH": self.db.name,
        }
        return environment if journal is None else {**environment, "FAULT_JOURNAL": str(journal)}

    def kill(self) -> None:
        """Kill it as a crash would."""
        self.end(signal.SIGKILL)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(WAIT_SECONDS)
        assert self._process.stdout is not None
        self._process.stdout.close()
        return self._process.returncode

    def signal(self, number: int) -> None:
        """Send a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def hurt(self, fault: str) -> None:
        """Let calls on the data file fail from now on, as shim.c says it: "write", "sync full at 3 once"."""
        self._hit.unlink(missing_ok=True)
        draft = self._control.with_suffix(".new")
        draft.write_text(fault)
        draft.replace(self._control)

    def heal(self) -> bool:
        """Let them succeed again; returns whether any failed."""
        self._control.unlink(missing_ok=True)
        return self._hit.exists()

    def log(self) -> str:
        """Return what the server wrote to stderr."""
        return (self.folder / "server.log").read_text()

    def view(self) -> psutil.Process:
        """Return the server as the system sees it."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def healthy(self, channel: grpc.Channel) -> bool | None:
        """Return the health status, None if the server does not answer."""
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except grpc.RpcError:
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def integrity(self) -> str:
        """Return what SQLite says of a copy of the file and its log. The server must be down."""
        copy = self.folder / "copy"
        copy.mkdir(exist_ok=True)
        for path in self.folder.glob(f"{self.db.name}*"):
            shutil.copy(path, copy / path.name)
        connection = sqlite3.connect(copy / self.db.name)
        try:
            found = str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        finally:
            connection.close()
            shutil.rmtree(copy)
        return found


def shim(folder: Path) -> Path:
    """Compile the library that makes calls fail."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    made = folder / "shim.so"
    if not made.exists():
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", made, HERE / "shim.c", "-ldl"], check=True
        )
    return made
