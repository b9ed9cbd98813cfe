"""The connection of the store: one a process, for all its threads and event loops."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from agentlightning.store.base import LightningStore, LightningStoreCapabilities
from lightningstore.client import AsyncLightningStore, LightningStoreError, ServerInfo
from lightningstore.client import LightningStore as BlockingStore
from lightningstore.client._base import DEFAULT_TIMEOUT
from lightningstore.client._bridge import ThreadedTransport
from lightningstore.client._endpoint import Endpoint, FilePath, endpoint
from lightningstore.client._grpc_sync import GrpcTransport

logger = logging.getLogger(__name__)

#: Seconds that a question about the server itself may take: it is asked from within event loops.
INFO_TIMEOUT = 5.0


class Connected(LightningStore):
    """A store that connects with its first call, anew in each process."""

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float | None = DEFAULT_TIMEOUT,
        metadata: Mapping[str, str] | None = None,
        token: str | None = None,
        tls_ca: FilePath | None = None,
        tls_cert: FilePath | None = None,
        tls_key: FilePath | None = None,
        allow_insecure_token: bool = False,
    ) -> None:
        """Take the address of a `lightningstore serve`, "host:port", or "https://host:port" for TLS.

        The arguments are those of `lightningstore.client.LightningStore`: unset ones come from the
        environment, `timeout` is in seconds and holds for each call, its retries included.

        Raises ValueError for a bad address, for files that do not fit, and for a token that would go over
        plain text; OSError for files that cannot be read.
        """
        super().__init__()
        self._timeout = timeout
        self._endpoint: Endpoint = endpoint(
            address,
            metadata,
            token=token,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            allow_insecure_token=allow_insecure_token,
        )
        self._begin()

    def _begin(self) -> None:
        # By process, for a child of a fork gets a copy of its parent's and may not use what is in there.
        self._clients: dict[int, AsyncLightningStore] = {}
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
    def _client(self) -> AsyncLightningStore:
        pid = os.getpid()
        found = self._clients.get(pid)
        if found is None:
            # Over a blocking channel: grpc.aio has one event loop a process, and agentlightning has several,
            # in its runner, its heartbeats, its tracer, its HTTP server.
            transport = ThreadedTransport(GrpcTransport(self._endpoint))
            made = AsyncLightningStore.over(transport, timeout=self._timeout)
            found = self._clients.setdefault(pid, made)
        return found

    async def close(self) -> None:
        """Close the connection of this process; a later call opens another one."""
        found = self._clients.pop(os.getpid(), None)
        if found is not None:
            await found.close()

    @property
    def capabilities(self) -> LightningStoreCapabilities:
        """Safe for threads and for asyncio, one copy for all processes.

        otlp_traces: whether the tracers of agentlightning can send over HTTP; else spans go over gRPC. The
        first look asks the server, for 5 seconds at most; one that does not answer has none.
        """
        return LightningStoreCapabilities(
            thread_safe=True,
            async_safe=True,
            zero_copy=True,
            otlp_traces=_exporter_follows() and bool(self._otlp_url),
        )

    def otlp_traces_endpoint(self) -> str:
        """Return the URL to which OTLP/HTTP exporters send spans.

        Raises NotImplementedError if the server has none that they can use.
        """
        url = self._otlp_url
        if not url:
            raise NotImplementedError(
                "the server takes OTLP over gRPC only, or wants a token or TLS, of which the tracers of "
                "agentlightning know nothing"
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
        transport = GrpcTransport(self._endpoint)
        with BlockingStore.over(transport, timeout=INFO_TIMEOUT) as store:
            try:
                return _otlp_url(self._endpoint.address, store.get_server_info())
            except LightningStoreError as error:
                logger.warning("%r does not say whether it takes OTLP over HTTP: %s", self, error)
                return ""


@cache
def _exporter_follows() -> bool:
    """Tell whether agentlightning can point its exporter at the store.

    It does so by an attribute that OpenTelemetry's exporter reads no more from 1.45 on: spans would go to
    port 4318 of this host, and be lost.
    """
    major, minor = version("opentelemetry-exporter-otlp-proto-http").split(".")[:2]
    return (int(major), int(minor)) < (1, 45)


def _otlp_url(address: str, info: ServerInfo) -> str:
    """Return where the server takes OTLP over HTTP, "" if it does not, or is on no network."""
    port = info.message.otlp_http_port
    address = address.removeprefix("dns:///")
    host = address.rpartition(":")[0] or address
    return f"http://{host}:{port}/v1/traces" if port and not host.startswith("unix") else ""
