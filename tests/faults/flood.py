"""Floods a server with frames of one kind over two connections, as a program: `flood.py PORT ping|reset`.

Goes on until its stdin ends, then prints how many frames it sent, over how many connections.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from benchmarks.wire import END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, frame

CANCEL = (8).to_bytes(4, "big")
AT_ONCE = 50
#: Header fields of a call, none of them indexed.
FIELDS = {
    b":path": b"/lightningstore.v1.LightningStoreService/GetStatistics",
    b":authority": b"store",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}
HEAD = b"\x83\x86" + b"".join(
    b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value
    for name, value in FIELDS.items()
)


def frames(kind: str, stream: int) -> bytes:
    """Return a bunch of frames: pings, or calls that are begun and reset at once from that stream id on."""
    if kind == "ping":
        return b"".join(frame(PING, 0, 0, os.urandom(8)) for _ in range(AT_ONCE))
    streams = range(stream, stream + 2 * AT_ONCE, 2)
    return b"".join(
        frame(HEADERS, END_HEADERS, s, HEAD) + frame(RST_STREAM, 0, s, CANCEL) for s in streams
    )


class Flood:
    """One connection after another, for the server may end each."""

    def __init__(self, port: int, kind: str, stop: threading.Event) -> None:
        self.port, self.kind, self.stop = port, kind, stop
        self.sent = self.connections = 0

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw:
                    self.connections += 1
                    self._send(raw)
            except OSError:  # the server has had enough of this one
                continue

    def _send(self, raw: socket.socket) -> None:
        raw.sendall(PREFACE + frame(SETTINGS, 0, 0))
        threading.Thread(target=drain, args=(raw,), daemon=True).start()
        stream = 1
        while not self.stop.is_set():
            raw.sendall(frames(self.kind, stream))
            stream += 2 * AT_ONCE
            self.sent += AT_ONCE


def drain(raw: socket.socket) -> None:
    """Read what comes, so that the server never waits for us."""
    try:
        while raw.recv(1 << 16):
            pass
    except OSError:
        pass


def main() -> None:
    """Flood until stdin ends."""
    stop = threading.Event()
    floods = [Flood(int(sys.argv[1]), sys.argv[2], stop) for _ in range(2)]
    threads = [threading.Thread(target=flood.run) for flood in floods]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stop.set()
    for thread in threads:
        thread.join()
    print(sum(flood.sent for flood in floods), sum(flood.connections for flood in floods))


if __name__ == "__main__":
    main()
