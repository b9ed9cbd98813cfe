"""The way of blocking clients to the server that owns their namespace: the rules of `owner`, for threads."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import grpc
from lightningstore.client._transport.channel import Holder, Stub, options
from lightningstore.client._transport.forks import gate
from lightningstore.client._transport.owner import (
    ADDRESS,
    CONNECT_SECONDS,
    LOOK_EVERY,
    OWNER_KEY,
    RETRY_SECONDS,
)


class BlockingOwner(Holder):
    """The connection to the owner, if there is one. Threads share it; a fork has none at first.

    Args:
        endpoint: The address and credentials of the first connection.
    """

    def _reset(self) -> None:
        super()._reset()
        self._is_connecting = False
        self._retry_at = 0.0
        self._calls = 0

    @property
    def stub(self) -> Any:
        """The calls of the contract at the owner; None: use the first connection."""
        if self._pid != os.getpid():  # a fork for which Python ran no hooks
            self._after_fork()
        return self._stub

    def is_due(self) -> bool:
        """Count a call over the first connection, and tell whether its trailers should be looked at."""
        self._calls += 1
        return self._calls % LOOK_EVERY == 1

    def learn(self, trailers: Iterable[tuple[str, Any]] | None) -> None:
        """Connect to the owner that trailers name. Returns at once.

        Args:
            trailers: The trailing metadata of an answer.
        """
        for key, address in trailers or ():
            if key == OWNER_KEY and ADDRESS.fullmatch(str(address)):
                self._follow(str(address))

    def _follow(self, address: str) -> None:
        with self._lock:
            is_busy = self._is_connecting or self._stub is not None
            if self._closed or is_busy or time.monotonic() < self._retry_at:
                return
            self._is_connecting = True
        threading.Thread(
            target=self._connect, args=(address,), name="lightningstore-owner", daemon=True
        ).start()

    def _connect(self, address: str) -> None:
        channel = None
        try:
            channel = replace(self.endpoint, address=address).blocking_channel(options())
            with gate.call():
                grpc.channel_ready_future(channel).result(CONNECT_SECONDS)
            is_ready = True
        except (grpc.FutureTimeoutError, OSError):  # OSError: a certificate cannot be read any more
            is_ready = False
        with self._lock:
            self._is_connecting = False
            if is_ready and not self._closed:
                self._channel, self._stub = channel, Stub(channel)
                return
            self._retry_at = time.monotonic() + RETRY_SECONDS
        if channel is not None:
            channel.close()

    def drop(self, stub: Any) -> None:
        """Use the first connection again: a call at the owner failed.

        Args:
            stub: The calls that were used. A newer connection stays.
        """
        with self._lock:
            if stub is not self._stub:
                return
            channel, self._channel, self._stub = self._channel, None, None
            self._calls = 0
        channel.close()

    def has_left(self, stub: Any) -> bool:
        """Return whether the client no longer uses a connection, although it is not closed itself.

        Args:
            stub: The calls that were used.
        """
        return not self._closed and stub is not self._stub

    def close(self) -> None:
        """Close the connection; calls that run fail."""
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
            self._closed = True
        if channel is not None:
            channel.close()
