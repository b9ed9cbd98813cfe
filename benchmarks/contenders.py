"""Starts the servers to compare, each a process, and observes them from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
PEER = "agentlightning==0.3.0"
PEER_VENV = ROOT / ".venv-peer"
START_SECONDS = 120.0


class Failed(Exception):
    """A contender or a load ended when it should not have."""


class Server:
    """A contender that runs."""

    def __init__(self, process: subprocess.Popen[str], address: str, start_seconds: float) -> None:
        self._process = process
        self._view = psutil.Process(process.pid)
        self.address = address
        #: Seconds from the start of the process until it was ready to serve.
        self.start_seconds = start_seconds

    def cpu_seconds(self) -> float:
        """Return what it has used of a core so far, all threads; the kernel counts in 10 ms."""
        used = self._view.cpu_times()
        return used.user + used.system

    def rss_bytes(self) -> int:
        """Return its resident memory."""
        return self._view.memory_info().rss

    def report(self) -> dict[str, float]:
        """Return what a watched server has measured since the last report."""
        self._process.send_signal(signal.SIGUSR1)
        while not (line := _line(self._process)).startswith("{"):
            pass  # The rest of the greeting.
        found: dict[str, float] = json.loads(line)
        return found

    def stop(self) -> None:
        """End it, cleanly if it can."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process of a benchmark: none of our settings leak in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LIGHTNINGSTORE_")}
    return {**kept, "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def watch(db: Path, *flags: str, **more: str) -> Iterator[Server]:
    """Start a server over a data file that measures how long its loop is held, and end it."""
    server = _start("benchmarks.watched", "--db", str(db), *flags, **more)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def serve(
    kind: str, folder: Path, *flags: str, peer_bin: Path = PEER_VENV / "bin"
) -> Iterator[Server]:
    """Start a contender: echo, sink, keep, memory, sqlite (its file in `folder`) or peer. Ends it too."""
    if kind == "peer":
        server = _start_peer(peer_bin)
    else:
        if kind == "sqlite" and "--db" not in flags:
            place = tempfile.mkdtemp(dir=folder)
            flags = (*flags, "--db", f"{place}/store.db")
        server = _start("benchmarks.servers", kind, *flags)
    try:
        yield server
    finally:
        server.stop()


def _start(module: str, *arguments: str, **more: str) -> Server:
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment(**more),
        stdout=subprocess.PIPE,
        text=True,
    )
    line = _line(process)
    found = re.search(r"on ([\d.]+:\d+)", line)
    if found is None:
        raise Failed(f"{module} said {line!r}")
    return Server(process, found[1], time.perf_counter() - started)


def _start_peer(commands: Path) -> Server:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.perf_counter()
    process = subprocess.Popen(
        [
            *(commands / "agl", "store", "--backend", "memory", "--log-level", "ERROR"),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        env=environment(LITELLM_LOCAL_MODEL_COST_MAP="True"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    address = f"127.0.0.1:{port}"
    while time.perf_counter() - started < START_SECONDS:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{address}/v1/agl/health", timeout=5).close()
            return Server(process, address, time.perf_counter() - started)
        if process.poll() is not None:
            raise Failed("the peer ended at its start")
        time.sleep(0.1)
    process.kill()
    raise Failed("the peer did not start")


def install_peer() -> None:
    """Make the peer's environment, once."""
    if (PEER_VENV / "bin" / "agl").exists():
        return
    print(f"installing {PEER} into {PEER_VENV.name}, about a minute", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", PEER_VENV], check=True)
    subprocess.run(
        [PEER_VENV / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", PEER],
        check=True,
    )


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise Failed(f"the server ended with {process.wait()}")
    return line
