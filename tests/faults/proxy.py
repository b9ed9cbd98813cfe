"""A TCP proxy that cuts, holds up and swallows what goes through it. Runs in a thread of its own."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable
from typing import Any, Self

CHUNK = 1 << 16


class Proxy:
    """Forwards from a port of its own to another one.

    `hold_up` and `hold_down` stop the bytes towards server and client, as a connection does that is half open
    or whose reader does not read; `swallow` throws away what the server answers, and calls `swallowed`.
    `latency` is the delay of every piece in seconds, `slices` the maximum length of a piece in bytes,
    `rate` the bytes per second, each way and connection.
    """

    def __init__(
        self, port: int, *, latency: float = 0.0, slices: int = CHUNK, rate: float = math.inf
    ) -> None:
        self._target = port
        self._latency, self._slices, self._rate = latency, slices, rate
        self.port = 0
        self.swallow = False
        self.swallowed: Callable[[], None] = lambda: None
        self.bytes_down = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._up.set()
        self._down.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def address(self) -> str:
        """Where clients go."""
        return f"127.0.0.1:{self.port}"

    def hold(self, *, up: bool = True, down: bool = True) -> None:
        """Hold bytes back from now on, connections stay open."""
        self._run(self._gates(up=not up, down=not down))

    def release(self) -> None:
        """Let bytes through again."""
        self._run(self._gates(up=True, down=True))

    def abandon(self) -> None:
        """Leave the connections that are open half open for good; new ones get through."""
        self._run(self._abandon())

    def cut(self) -> None:
        """Reset every connection."""
        self._run(self._cut())

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _gates(self, *, up: bool, down: bool) -> None:
        for gate, is_open in ((self._up, up), (self._down, down)):
            if is_open:
                gate.set()
            else:
                gate.clear()

    async def _abandon(self) -> None:
        await self._gates(up=False, down=False)  # and these events are no longer set
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._up.set()
        self._down.set()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _stop(self) -> None:
        self._server.close()
        await self._gates(up=True, down=True)
        await self._cut()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._target, limit=CHUNK)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        try:
            await asyncio.gather(
                self._pump(reader, back, self._up),
                self._pump(there, writer, self._down, answers=True),
            )
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for end in (writer, back):
                end.transport.abort()
                self._writers.discard(end)

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        gate: asyncio.Event,
        *,
        answers: bool = False,
    ) -> None:
        while data := await reader.read(CHUNK):
            await gate.wait()
            if answers:
                if self.swallow:
                    self.swallowed()
                    continue
                self.bytes_down += len(data)
            await self._pass(data, writer)
        raise ConnectionResetError  # one end is gone: so is the other

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        if self._latency:
            await asyncio.sleep(self._latency)
        for start in range(0, len(data), self._slices):
            part = data[start : start + self._slices]
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(
                len(part) / self._rate
            )  # at least a turn of the loop: pieces stay pieces
