"""Ports that are free for the servers of one test alone.

A port that a test finds by listening for a moment may be another server's when it is used: many servers are started at
a time, and the system chooses the ports of most of them.
"""

from __future__ import annotations

import socket

#: The ports that are kept for as long as the tests run.
_kept: list[socket.socket] = []


def reserve() -> socket.socket:
    """Return a socket that keeps a free port of 127.0.0.1 until it is closed.

    The system never chooses the port for another socket. A server that names the port listens on it beside this socket,
    because both set SO_REUSEADDR. Until it listens, connections are refused.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("127.0.0.1", 0))
    return kept


def port_of(kept: socket.socket) -> int:
    """Return the port of a socket."""
    return int(kept.getsockname()[1])


def free_port() -> int:
    """Return a port that is kept for as long as the tests run."""
    _kept.append(reserve())
    return port_of(_kept[-1])
