"""The connection of the store: one per process, for all its threads and event loops."""

from __future__ import annotations

import logging
import os
import weakref
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from agentlightning.store.base import LightningStore, LightningStoreCapabilities
from lightningstore.client import AsyncLightningStore, LightningStoreError, ServerInfo
from lightningstore.client import LightningStore as BlockingStore
from lightningstore.client.connection import DEFAULT_TIMEOUT, ConnectionOptions, Endpoint, endpoint
from lightningstore.integrations.agentlightning import _links

if TYPE_CHECKING:
    from typing_extensions import Unpack

logger = logging.getLogger(__name__)

#: Timeout in seconds of GetServerInfo, which is called within event loops.
INFO_TIMEOUT = 5.0


class _Held(NamedTuple):
    """The part of a connection that a store holds."""

    link: _links.Link
    client: AsyncLightningStore
    #: Releases the link, once.
    let_go: weakref.finalize[..., Any]


class Connected(LightningStore):
    """A store that connects with its first call, separately in each process."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        **connection: Unpack[ConnectionOptions],
    ) -> None:
        """Create a store for a `lightningstore serve`.

        The address is "host:port", or "https://host:port" for TLS. The arguments are those of
        `lightningstore.client.LightningStore`. Unset ones come from the environment. `timeout` is
        in seconds and applies to each call, retries included.

        Raises:
            ValueError: The address, the namespace or a file is invalid, or a token would be sent unencrypted.
            OSError: A file cannot be read.
        """
        super().__init__()
        self._timeout = timeout
        self._endpoint: Endpoint = endpoint(address, **connection)
        self._begin()

    def _begin(self) -> None:
        # By process, because a forked child gets a copy of its parent's and must not use it.
        self._held: dict[int, _Held] = {}
        self._otlp_urls: dict[int, str] = {}
        #: Request ids of claims without an answer, by worker and limit.
        self._unanswered: dict[tuple[int, str | None, int], str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_endpoint": self._endpoint, "_timeout": self._timeout}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint.address!r})"

    @property
    def _holding(self) -> _Held:
        pid = os.getpid()
        held = self._held.get(pid)
        if held is None:
            made = self._hold()
            held = self._held.setdefault(pid, made)
            if held is not made:  # another thread was faster
                made.let_go()
        return held

    def _hold(self) -> _Held:
        link = _links.acquire(self._endpoint)
        let_go = weakref.finalize(self, _links.release, link)
        let_go.atexit = False
        return _Held(link, AsyncLightningStore.over(link.transport, timeout=self._timeout), let_go)

    @property
    def _client(self) -> AsyncLightningStore:
        return self._holding.client

    async def close(self) -> None:
        """Send the buffered spans, and release the connection of this process.

        It is closed 5 seconds after the last store with this address has released it. A later call
        connects again.
        """
        held = self._held.pop(os.getpid(), None)
        if held is not None:
            await held.link.buffer.settled(self._timeout)
            held.let_go()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Safe for threads and for asyncio, one copy for all processes.

        otlp_traces: whether the tracers of agentlightning can send over HTTP; otherwise spans are
        sent over gRPC. The first access calls the server, for at most 5 seconds; a server that does
        not answer has no capabilities.
        """
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=True,
            otlp_traces=_exporter_follows() and bool(self._otlp_url),
        )

    def otlp_traces_endpoint(self) -> str:
        """Return the URL to which OTLP/HTTP exporters send spans.

        Raises:
            NotImplementedError: The server has no URL that they can use.
        """
        url = self._otlp_url
        if not url:
            raise NotImplementedError(
                "the server takes OTLP over gRPC only, or requires a token, TLS or a namespace, which the "
                "tracers of agentlightning do not send"
            )
        return url

    @property
    def _otlp_url(self) -> str:
        pid = os.getpid()
        found = self._otlp_urls.get(pid)
        if found is None:
            found = self._otlp_urls[pid] = self._ask_otlp_url()
        return found

    def _ask_otlp_url(self) -> str:
        if self._endpoint.secure or self._endpoint.metadata:
            return ""
        store = BlockingStore.over(self._holding.link.blocking, timeout=INFO_TIMEOUT)
        try:
            return _otlp_url(self._endpoint.address, store.get_server_info())
        except LightningStoreError as error:
            logger.warning("%r does not say whether it takes OTLP over HTTP: %s", self, error)
            return ""


@cache
def _exporter_follows() -> bool:
    """Return whether agentlightning can set the URL of its exporter.

    It uses an attribute that OpenTelemetry's exporter ignores from 1.45 on: spans would be sent to
    port 4318 of this host, and be lost.
    """
    major, minor = version("opentelemetry-exporter-otlp-proto-http").split(".")[:2]
    return (int(major), int(minor)) < (1, 45)


def _otlp_url(address: str, info: ServerInfo) -> str:
    """Return the server's URL of OTLP over HTTP, "" without one or without a network address."""
    port = info.message.otlp_http_port
    address = address.removeprefix("dns:///")
    host = address.rpartition(":")[0] or address
    return f"http://{host}:{port}/v1/traces" if port and not host.startswith("unix") else ""
