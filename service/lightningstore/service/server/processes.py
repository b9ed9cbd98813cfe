"""The parent of several server processes: starts them, starts again the ones that end, and stops them all."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import msgspec
from lightningstore.service.cluster.processes import VARIABLE, Process
from lightningstore.service.server.addresses import FALLS_BACK, AddressInUse
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import CLOSING_SECONDS

logger = logging.getLogger(__name__)

#: Seconds before a process that ended is started again: the first time, and at most.
RESTART_SECONDS, MAX_RESTART_SECONDS = 0.2, 10.0
#: Seconds after which a process counts as one that works.
WORKS_SECONDS = 10.0
#: Seconds beyond the grace period after which a process that does not end is killed.
KILL_SECONDS = 5.0
_RUN = "from lightningstore.service.cli.entry import main; main()"


class StartFailed(Exception):
    """A process ended before it served. Its own message is on stderr."""


class Processes:
    """Several processes that serve the same ports."""

    def __init__(self, config: Config, host: str) -> None:
        """Take the settings, and the host at which clients reach this machine."""
        self._config = config
        self._host = host
        self._stopping = asyncio.Event()
        self._running: dict[int, asyncio.subprocess.Process] = {}
        #: Whether every process that was asked to stop has ended well.
        self.is_clean = True
        self.port = self.http_port = 0

    def stop(self) -> None:
        """Ask all processes to stop, which `run` waits for."""
        self._stopping.set()
        for process in self._running.values():
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    async def run(self, ready: Callable[[], None]) -> None:
        """Serve until `stop`; calls `ready` once all processes serve. Raises AddressInUse, StartFailed."""
        with ExitStack() as stack:
            template = self._prepare(stack)
            served = [asyncio.Event() for _ in template.addresses]
            keepers = [
                asyncio.create_task(
                    self._keep(msgspec.structs.replace(template, index=index), event)
                )
                for index, event in enumerate(served)
            ]
            announcing = asyncio.create_task(_announce(served, ready))
            try:
                await asyncio.gather(*keepers)
            finally:
                announcing.cancel()
                self.stop()
                await asyncio.gather(*keepers, return_exceptions=True)

    def _prepare(self, stack: ExitStack) -> Process:
        """Reserve the ports and the folder of sockets; return what the processes have in common."""
        config = self._config
        self.port = stack.enter_context(_reserved(config.host, config.port))
        self.http_port = self._reserve_http(stack)
        otlp = config.otlp_http_port
        ports = [stack.enter_context(_reserved(config.host, 0)) for _ in range(config.processes)]
        return Process(
            index=0,
            addresses=tuple(f"{self._host}:{port}" for port in ports),
            sockets=stack.enter_context(tempfile.TemporaryDirectory(prefix="lightningstore-")),
            port=self.port,
            http_port=self.http_port,
            otlp_http_port=0 if otlp is None else stack.enter_context(_reserved(config.host, otlp)),
        )

    def _reserve_http(self, stack: ExitStack) -> int:
        """Reserve the port of HTTP, another one if its default is taken; 0: none."""
        host, port = self._config.host, self._config.http_port
        if not port:
            return 0
        if self._config.http_port_is_chosen:
            return stack.enter_context(_reserved(host, port))
        if self._config.port:
            try:
                return stack.enter_context(_reserved(host, port))
            except AddressInUse:
                free = stack.enter_context(_reserved(host, 0))
                logger.warning(FALLS_BACK, port, "in use", free)
                return free
        return stack.enter_context(_reserved(host, 0))

    async def _keep(self, process: Process, served: asyncio.Event) -> None:
        """Run one process, again and again, until `stop`. Raises StartFailed if it never serves."""
        loop, pause = asyncio.get_running_loop(), RESTART_SECONDS
        while not self._stopping.is_set():
            began = loop.time()
            code = await self._run_once(process, served)
            if self._stopping.is_set():
                self.is_clean = self.is_clean and code == 0
                return
            if not served.is_set():
                self.stop()
                raise StartFailed
            if loop.time() - began > WORKS_SECONDS:
                pause = RESTART_SECONDS
            logger.error(
                "process %d ended with code %s; it starts again in %.1f s",
                process.index,
                code,
                pause,
            )
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), pause)
            pause = min(2 * pause, MAX_RESTART_SECONDS)

    async def _run_once(self, process: Process, served: asyncio.Event) -> int:
        """Run one process to its end; return its exit code."""
        ready_here, ready_there = os.pipe()
        parent_there, parent_here = os.pipe()
        described = msgspec.structs.replace(process, ready=ready_there, parent=parent_there)
        try:
            child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                _RUN,
                *sys.argv[1:],
                pass_fds=(ready_there, parent_there),
                env=os.environ | {VARIABLE: msgspec.json.encode(described).decode()},
                start_new_session=True,  # Ctrl-C is for the parent, which lets all of them end
            )
        finally:
            os.close(ready_there)
            os.close(parent_there)
        self._running[process.index] = child
        loop = asyncio.get_running_loop()

        def note() -> None:
            loop.remove_reader(ready_here)
            if os.read(ready_here, 1):
                served.set()

        loop.add_reader(ready_here, note)
        try:
            if self._stopping.is_set():
                child.send_signal(signal.SIGTERM)
            return await self._ended(child)
        finally:
            del self._running[process.index]
            loop.remove_reader(ready_here)
            os.close(ready_here)
            os.close(parent_here)

    async def _ended(self, child: asyncio.subprocess.Process) -> int:
        """Return the exit code of a process, which is killed if it does not stop in time."""
        ended = asyncio.ensure_future(child.wait())
        stopping = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not ended.done():
            limit = self._config.grace + CLOSING_SECONDS + KILL_SECONDS
            await asyncio.wait([ended], timeout=limit)
            if not ended.done():
                child.kill()
        return await ended


async def _announce(served: list[asyncio.Event], ready: Callable[[], None]) -> None:
    """Call `ready` once all processes serve."""
    for event in served:
        await event.wait()
    ready()


@contextmanager
def _reserved(host: str, port: int) -> Iterator[int]:
    """Keep a port for the processes, which listen on it themselves; 0: a free one. Raises AddressInUse."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as reserved:
        try:
            if port:  # another server, whose processes share the port, would share its connections with these
                with socket.socket(family, socket.SOCK_STREAM) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((host.strip("[]"), port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((host.strip("[]"), port))
        except OSError as error:
            raise AddressInUse(f"cannot listen on {host}:{port}: {error.strerror}") from None
        yield reserved.getsockname()[1]
