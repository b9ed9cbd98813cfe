"""`lightningstore serve` and its views as processes of their own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.integration.forks import run_forked

COMMAND = str(Path(sys.executable).parent / "lightningstore")
#: Generous, for machines where much else runs; the first command waits for the imports of the others.
START_SECONDS = 60
STOP_SECONDS = 60
ENVIRONMENT = {
    key: value for key, value in os.environ.items() if not key.startswith("LIGHTNINGSTORE_")
}
#: One for each command that runs at the same time.
_THREADS = ThreadPoolExecutor(32)


class Process:
    """A running server."""

    def __init__(self, process: asyncio.subprocess.Process, first_line: str) -> None:
        self.process = process
        self.first_line = first_line
        self.address = first_line.partition(" on ")[2].partition(",")[0]
        #: The other lines that it has printed, once it has ended.
        self.said: list[str] = []

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal; returns the exit code."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        out, _ = await asyncio.wait_for(self.process.communicate(), STOP_SECONDS)
        self.said += out.decode().splitlines()
        assert self.process.returncode is not None
        return self.process.returncode


async def serve(*options: str, folder: Path, http: bool = False) -> Process:
    """Start a server in a folder and return when it listens. Without `http` it starts faster."""
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        "serve",
        *options,
        cwd=folder,
        env=ENVIRONMENT if http else {"LIGHTNINGSTORE_HTTP_PORT": "0"} | ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), START_SECONDS)
    if not line:
        _, errors = await process.communicate()
        raise AssertionError(f"exit code {process.returncode}: {errors.decode()}")
    return Process(process, line.decode().rstrip("\n"))


async def run(
    *arguments: str, folder: Path, stdin: bytes | None = None, **environment: str
) -> tuple[int, str, str]:
    """Run a command to its end; returns exit code, stdout and stderr."""
    variables = {**ENVIRONMENT, "COLUMNS": "250", **environment}
    if arguments[:1] != ("serve",):
        work = (list(arguments), folder, stdin, variables, START_SECONDS)
        return await asyncio.get_running_loop().run_in_executor(_THREADS, run_forked, *work)
    process = await asyncio.create_subprocess_exec(
        COMMAND,
        *arguments,
        cwd=folder,
        env=variables,
        stdin=None if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, errors = await asyncio.wait_for(process.communicate(stdin), START_SECONDS)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode is not None
    return process.returncode, out.decode(), errors.decode()
