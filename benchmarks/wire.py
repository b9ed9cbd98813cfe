"""Unary gRPC calls directly over HTTP/2 frames: a client with minimal overhead.

grpc.aio's own client uses as much of a core as the server does. Both then run in lockstep, and a
ratio of throughputs measures the client. This one costs about a tenth, so that the server is the
bottleneck. It supports what a benchmark needs: small unary requests without TLS, headers indexed as
gRPC does, both flow-control windows, replies to pings and settings. It parses no response headers:
a gRPC server sends no message with an error, so a response without a message is an error.

Source: https://www.rfc-editor.org/rfc/rfc9113, https://www.rfc-editor.org/rfc/rfc7541.
"""

from __future__ import annotations

import asyncio
from collections import deque

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WINDOW = 2**31 - 1
FIRST_WINDOW = 65_535
FRAME_BYTES = 16_384
#: Bytes taken after which the connection's window is opened again.
REFILL_BYTES = 1 << 28
INITIAL_WINDOW_SIZE = 4
FIRST_DYNAMIC_INDEX = 62


class CallFailed(Exception):
    """A call was answered with an error, or not at all."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one HTTP/2 frame."""
    head = (len(payload) << 40 | kind << 32 | flags << 24) >> 24
    return head.to_bytes(5, "big") + stream.to_bytes(4, "big") + payload


class Connection(asyncio.Protocol):
    """One connection, for calls of up to 64 KB each way in; answers of any size."""

    def __init__(self, authority: str) -> None:
        self._authority = authority.encode()
        self._transport: asyncio.Transport | None = None
        self._in = bytearray()
        self._out: list[bytes] = []
        self._next = 1
        self._calls: dict[int, tuple[asyncio.Future[bytes], list[bytes]]] = {}
        self._table: dict[tuple[bytes, bytes], int] = {}
        self._window = FIRST_WINDOW
        self._stream_window = FIRST_WINDOW
        self._waiting: deque[tuple[int, bytes]] = deque()
        self._taken = 0
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()

    async def ready(self) -> None:
        """Return once the server has told its settings."""
        await self._ready

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def call(self, path: bytes, request: bytes) -> asyncio.Future[bytes]:
        """Begin a unary call; its future gives the serialised answer. Raises CallFailed."""
        stream, self._next = self._next, self._next + 2
        future = self._loop.create_future()
        self._calls[stream] = (future, [])
        self._send(frame(HEADERS, END_HEADERS, stream, self._headers(path)))
        body = b"\0" + len(request).to_bytes(4, "big") + request
        if len(body) > self._stream_window:
            raise CallFailed(f"a request of {len(body)} bytes is above {self._stream_window}")
        if self._waiting or len(body) > self._window:
            self._waiting.append((stream, body))
        else:
            self._send_body(stream, body)
        return future

    def _send_body(self, stream: int, body: bytes) -> None:
        self._window -= len(body)
        for start in range(0, len(body), FRAME_BYTES):
            part = body[start : start + FRAME_BYTES]
            last = start + FRAME_BYTES >= len(body)
            self._send(frame(DATA, END_STREAM if last else 0, stream, part))

    def _send(self, data: bytes) -> None:
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._transport is not None:
            self._transport.write(b"".join(self._out))
        self._out.clear()

    def _headers(self, path: bytes) -> bytes:
        block = [b"\x83\x86"]  # :method POST, :scheme http
        for name, value in (
            (b":path", path),
            (b":authority", self._authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-benchmark/1.0"),
        ):
            age = self._table.get((name, value))
            if age is None:
                self._table[name, value] = len(self._table)
                parts = (b"\x40", bytes([len(name)]), name, bytes([len(value)]), value)
                block.append(b"".join(parts))
            else:
                block.append(bytes([0x80 | FIRST_DYNAMIC_INDEX + len(self._table) - 1 - age]))
        return b"".join(block)

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, with windows that never close."""
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        settings = INITIAL_WINDOW_SIZE.to_bytes(2, "big") + WINDOW.to_bytes(4, "big")
        self._send(PREFACE + frame(SETTINGS, 0, 0, settings))
        self._send(frame(WINDOW_UPDATE, 0, 0, (WINDOW - FIRST_WINDOW).to_bytes(4, "big")))

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is open."""
        for future, _ in self._calls.values():
            if not future.done():
                future.set_exception(CallFailed(f"connection lost: {error}"))

    def data_received(self, data: bytes) -> None:
        """Take frames apart."""
        if self._in:
            self._in += data
            data = bytes(self._in)
            self._in.clear()
        at, end = 0, len(data)
        while at + 9 <= end:
            behind = at + 9 + int.from_bytes(data[at : at + 3], "big")
            if behind > end:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._take(data[at + 3], data[at + 4], stream, data[at + 9 : behind])
            at = behind
        if at < end:
            self._in += data[at:]

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == DATA:
            self._calls[stream][1].append(payload)
            self._taken += len(payload)
            if self._taken > REFILL_BYTES:
                self._send(frame(WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big")))
                self._taken = 0
        if kind in (DATA, HEADERS):
            if flags & END_STREAM:
                self._answer(stream)
        elif kind == WINDOW_UPDATE:
            if stream == 0:
                self._window += int.from_bytes(payload, "big")
                self._send_waiting()
        elif kind == SETTINGS and not flags & ACK:
            self._settings(payload)
        elif kind == PING and not flags & ACK:
            self._send(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM and stream in self._calls:
            self._calls.pop(stream)[0].set_exception(CallFailed(f"reset: {payload.hex()}"))
        elif kind == GOAWAY:
            self.connection_lost(CallFailed(payload[8:].decode(errors="replace")))

    def _settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            if int.from_bytes(payload[at : at + 2], "big") == INITIAL_WINDOW_SIZE:
                self._stream_window = int.from_bytes(payload[at + 2 : at + 6], "big")
        self._send(frame(SETTINGS, ACK, 0))
        if not self._ready.done():
            self._ready.set_result(None)

    def _send_waiting(self) -> None:
        while self._waiting and len(self._waiting[0][1]) <= self._window:
            self._send_body(*self._waiting.popleft())

    def _answer(self, stream: int) -> None:
        future, parts = self._calls.pop(stream)
        if future.done():
            return
        if not parts:
            future.set_exception(CallFailed("the answer was an error"))
            return
        message = parts[0] if len(parts) == 1 else b"".join(parts)
        future.set_result(message[5:])


async def connect(address: str) -> Connection:
    """Open a connection to host:port."""
    host, port = address.rsplit(":", 1)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(address), host, int(port))
    await connection.ready()
    return connection
