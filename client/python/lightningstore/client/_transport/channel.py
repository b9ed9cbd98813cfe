"""Channels of gRPC: their options, and how clients survive forks, pickling and event loops.

A channel belongs to the process and, for asyncio, to the event loop that created it. A child of a fork must neither use
nor close the channel of its parent. It keeps that channel unused, and creates its own when it needs one. An Endpoint has
the credentials.

gRPC has one asyncio engine per process, driven by a thread that a fork does not copy. In tests, a child whose parent had
an asyncio channel open hung or crashed in its first asyncio call, while blocking calls worked. In such a child asyncio
calls use a blocking channel (`aio_is_lost`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message_factory import GetMessageClass
from lightningstore.client._transport.contact import FIRST_ANSWER, Contact
from lightningstore.client._transport.methods import METHODS, method_descriptor, method_path
from lightningstore.client.connection import Endpoint

MIB = 1 << 20
#: The server's limit of a message, and room for its frame.
MAX_MESSAGE_BYTES = 64 * MIB + MIB
#: Milliseconds between pings on a connection, and until an unanswered one ends it.
KEEPALIVE_MS = 20_000
KEEPALIVE_TIMEOUT_MS = 10_000
#: Minimum and maximum milliseconds between two tries to connect. A try may take the maximum.
MIN_RECONNECT_MS = 100
MAX_RECONNECT_MS = 2_000

#: Channels of the parent process. They are kept, because a channel closes when it is freed.
_abandoned: list[Any] = []
_holders: weakref.WeakSet[Holder] = weakref.WeakSet()
_aio_lost = False


def aio_is_lost() -> bool:
    """Tell whether this process is a fork of one that had asyncio channels open."""
    return _aio_lost


@cache  # reading it parses the metadata of the package, which costs more than the channel
def _version() -> str:
    try:
        return version("lightningstore")
    except PackageNotFoundError:  # run from its sources
        return "0"


def options() -> list[tuple[str, Any]]:
    """Return the options of every channel.

    They include no retry policy of gRPC. The client retries with knowledge of the deadline, of the ids that make a retry
    safe and of the server's RetryInfo, and two policies would multiply.
    """
    return [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Without pings a vanished peer is never detected.
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        # Reconnect to a restarted server within seconds. gRPC's default is two minutes.
        ("grpc.initial_reconnect_backoff_ms", MIN_RECONNECT_MS),
        # The time that a try may take, in spite of its name: a distant or busy server needs more than the minimum.
        ("grpc.min_reconnect_backoff_ms", MAX_RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
        # Each client of a process has its own connection: closing one client must not affect another, and a
        # connection has at most a hundred streams.
        ("grpc.use_local_subchannel_pool", 1),
        # The http_proxy of the environment is for the web, and not for a store.
        ("grpc.enable_http_proxy", 0),
        ("grpc.primary_user_agent", f"lightningstore-python/{_version()}"),
    ]


class Stub:
    """The calls of the contract on one channel, each created when it is first used.

    The generated stub creates all 30 at once, for a client that needs three. With a large heap, as in a forked runner,
    this number of objects can trigger a full garbage collection.
    """

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def __getattr__(self, name: str) -> Any:
        """Create the call of a method, and store it as an attribute, so that this runs once per method."""
        if name not in METHODS:
            raise AttributeError(f"the contract has no method {name!r}")
        method = method_descriptor(name)
        shape = f"{_side(method.client_streaming)}_{_side(method.server_streaming)}"
        call = getattr(self._channel, shape)(
            method_path(name),
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
            _registered_method=True,
        )
        setattr(self, name, call)
        return call


def _side(streaming: bool) -> str:  # noqa: FBT001
    return "stream" if streaming else "unary"


class Holder:
    """Holds one channel of this process, created when it is first needed."""

    def __init__(self, endpoint: Endpoint) -> None:
        """Hold a channel to an endpoint. Nothing connects yet."""
        self.endpoint = endpoint
        self._reset()

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._channel: Any = None
        self._stub: Any = None
        self._closed = False
        self._pid = os.getpid()
        #: Whether the server has answered yet.
        self.contact = Contact(self.endpoint.address)
        _holders.add(self)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def __getstate__(self) -> dict[str, Any]:
        return {"endpoint": self.endpoint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()

    def _after_fork(self) -> None:
        global _aio_lost  # noqa: PLW0603
        closed = self._closed
        if self._channel is not None:
            _abandoned.append((self._channel, self._stub))
            _aio_lost = _aio_lost or isinstance(self, AsyncHolder)
        self._reset()
        self._closed = closed

    def _check(self) -> None:
        if self._pid != os.getpid():  # a fork for which Python ran no hooks
            self._after_fork()
        if self._closed:
            raise RuntimeError("the client is closed")


def _forget_channels() -> None:
    for holder in list(_holders):
        holder._after_fork()


if hasattr(os, "register_at_fork"):
    # Not only when next used: a lock that another thread of the parent held stays locked in the child.
    os.register_at_fork(after_in_child=_forget_channels)


class BlockingHolder(Holder):
    """Holds a blocking channel. Threads share it."""

    def stub(self) -> Any:
        """Return the calls of the service. Raises RuntimeError if the client is closed."""
        self._check()
        with self._lock:
            if self._stub is None:
                self._channel = self.endpoint.blocking_channel(options())
                self._stub = Stub(self._channel)
                self._time_first_answer()
            return self._stub

    def _time_first_answer(self) -> None:
        timer = threading.Timer(FIRST_ANSWER, _report_state, (self._channel, self.contact))
        timer.daemon = True
        timer.start()
        self.contact.time_with(timer.cancel)

    def close(self) -> None:
        """Close the channel; calls that run fail."""
        self.contact.close()
        with self._lock:
            channel, self._channel, self._stub = self._channel, None, None
            self._closed = True
        if channel is not None:
            channel.close()


def _report_state(channel: grpc.Channel, contact: Contact) -> None:
    """Pass the state of a blocking channel to the contact. gRPC tells it in a callback only."""

    def report(state: grpc.ChannelConnectivity) -> None:
        with contextlib.suppress(ValueError):  # the channel is closed
            channel.unsubscribe(report)
        contact.report(state)

    with contextlib.suppress(ValueError):
        channel.subscribe(report)


class AsyncHolder(Holder):
    """Holds an asyncio channel of the running event loop."""

    def _reset(self) -> None:
        super()._reset()
        self._loop: asyncio.AbstractEventLoop | None = None

    def stub(self) -> Any:
        """Return the calls of the service. Raises RuntimeError if closed, or outside of a loop."""
        self._check()
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            # The channel of another loop closes when it is freed. Closing it would need that loop.
            self._channel = self.endpoint.async_channel(options())
            self._stub = Stub(self._channel)
            self._loop = loop
            if not self.contact.is_timed:
                timer = loop.call_later(FIRST_ANSWER, self._report_state, self._channel)
                self.contact.time_with(timer.cancel)
        return self._stub

    def _report_state(self, channel: grpc.aio.Channel) -> None:
        if channel is self._channel:
            self.contact.report(channel.get_state())

    async def close(self) -> None:
        """Close the channel; calls that run fail."""
        self.contact.close()
        channel, self._channel, self._stub = self._channel, None, None
        self._closed = True
        if channel is not None and self._loop is asyncio.get_running_loop():
            await channel.close()
