"""A peer that begins calls and never lets an answer through: its flow-control window for each stream is 0."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from benchmarks.wire import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    SETTINGS,
    frame,
)

HEAD_BYTES = 9


class Peer:
    """One connection. Frames are answered as HTTP/2 demands, so the server has no reason to close it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._stream = 1
        self._answered: dict[int, asyncio.Event] = {}
        self._reading = asyncio.create_task(self._read())

    async def begin(
        self,
        path: str,
        message: bytes,
        *,
        half_close: bool = True,
        answered: bool = True,
        metadata: Mapping[str, bytes] | None = None,
    ) -> None:
        """Begin a call; returns once its headers are answered, so that its message is what is held back.

        With `answered` false it returns once the frames are sent. `metadata` may be what gRPC would not send.
        """
        stream, self._stream = self._stream, self._stream + 2
        self._answered[stream] = asyncio.Event()
        fields = {
            ":path": path.encode(),
            ":authority": b"store",
            "te": b"trailers",
            "content-type": b"application/grpc",
        } | dict(metadata or {})
        block = b"\x83\x86" + b"".join(  # :method POST, :scheme http, then literals
            b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value
            for name, value in fields.items()
        )
        body = b"\0" + len(message).to_bytes(4, "big") + message
        self._writer.write(frame(HEADERS, END_HEADERS, stream, block))
        self._writer.write(frame(DATA, END_STREAM if half_close else 0, stream, body))
        if answered:
            await asyncio.wait_for(self._answered[stream].wait(), 10)
        else:
            await self._writer.drain()

    async def _read(self) -> None:
        while True:
            head = await self._reader.readexactly(HEAD_BYTES)
            payload = await self._reader.readexactly(int.from_bytes(head[:3], "big"))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:], "big")
            assert kind != DATA or not payload, "the window is 0"
            if kind == HEADERS:
                self._answered[stream].set()
            elif kind in (SETTINGS, PING) and not flags & ACK:
                self._writer.write(frame(kind, ACK, 0, payload if kind == PING else b""))

    async def close(self) -> None:
        """Hang up."""
        self._reading.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
        self._writer.close()


async def connect(address: str) -> Peer:
    """Open a connection to host:port."""
    host, port = address.rsplit(":", 1)
    reader, writer = await asyncio.open_connection(host, int(port))
    no_window = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
    writer.write(PREFACE + frame(SETTINGS, 0, 0, no_window))
    return Peer(reader, writer)
