"""Connections of this process, shared by the stores with the same endpoint.

agentlightning creates many stores, even one per call. A channel costs more than a call, so an unused one is kept
for the next store for a while.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from lightningstore.client import LightningStore as BlockingStore
from lightningstore.client.connection import Endpoint
from lightningstore.client.transports import GrpcTransport, ThreadedTransport
from lightningstore.integrations.agentlightning._buffer import InOrder, SpanBuffer

#: Seconds that a connection without users is kept.
LINGER = 5.0

_links: dict[Endpoint, Link] = {}
# Reentrant, because a garbage-collected store releases its link, at any point of a thread.
_lock = threading.RLock()
_timer: threading.Timer | None = None


class Link:
    """A connection, and the spans that are to be sent over it."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Create a connection to an endpoint; the channel is created with the first call."""
        self.pid = os.getpid()
        #: Blocking, for all threads. grpc.aio supports one event loop per process, but agentlightning has several,
        #: in its runner, its heartbeats, its tracer and its HTTP server.
        self.blocking = GrpcTransport(endpoint)
        self.buffer = SpanBuffer(BlockingStore.over(self.blocking))
        self.transport = InOrder(ThreadedTransport(self.blocking), self.buffer)
        self.users = 0
        self.idle_since = 0.0

    def close(self) -> None:
        """Send the remaining spans, and close the channel."""
        self.buffer.shutdown()
        self.blocking.close()


def acquire(endpoint: Endpoint) -> Link:
    """Return the connection to an endpoint; the caller passes it to `release`."""
    with _lock:
        link = _links.get(endpoint)
        if link is None:
            link = _links[endpoint] = Link(endpoint)
        link.users += 1
        return link


def release(link: Link) -> None:
    """Release a connection; it is closed if it is not acquired again within LINGER seconds."""
    with _lock:
        if link.pid != os.getpid():  # a copy of the parent's, in a child of a fork
            return
        link.users -= 1
        if not link.users:
            link.idle_since = time.monotonic()
            _look_later()


def _look_later() -> None:
    global _timer  # noqa: PLW0603
    if _timer is None:
        _timer = threading.Timer(LINGER, _close_idle)
        _timer.daemon = True
        _timer.start()


def _close_idle() -> None:
    global _timer  # noqa: PLW0603
    with _lock:
        _timer = None
        idle = {place: link for place, link in _links.items() if not link.users}
        late = time.monotonic() - LINGER
        closing = [_links.pop(place) for place, link in idle.items() if link.idle_since <= late]
        if len(closing) < len(idle):
            _look_later()
    for link in closing:
        link.close()


#: Links of the parent process. Kept, because releasing one closes its channel.
_abandoned: list[Any] = []


def _forget_links() -> None:
    global _lock, _timer
    _abandoned.extend(_links.values())
    _links.clear()
    _lock, _timer = threading.RLock(), None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_links)
