"""The ports of HTTP: one for everything, and those of OTLP and of metrics alone."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import web
from lightningstore.service.cluster import calls as servers
from lightningstore.service.http.browsers import Browsers
from lightningstore.service.http.connect import Connect
from lightningstore.service.http.console import Console
from lightningstore.service.http.metrics import MetricsPage
from lightningstore.service.http.otlp import OtlpTraces
from lightningstore.service.http.pages import Pages
from lightningstore.service.http.server import HttpServer, Service
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.rpc import handlers, otlp
from lightningstore.service.rpc.calls import Streams
from lightningstore.service.rpc.dispatch import Dispatcher
from lightningstore.service.server.addresses import FALLS_BACK, FOR_METRICS, bracketed, listening
from lightningstore.service.server.config import Config
from lightningstore.service.server.gate import Gate
from lightningstore.service.server.metrics import Metrics

logger = logging.getLogger(__name__)

#: Services whose calls are served over HTTP.
CONTRACT = (handlers.SERVICE, handlers.NAMESPACES, servers.SERVICE)


class HttpCalls(NamedTuple):
    """What the ports need to answer calls."""

    dispatcher: Dispatcher
    streams: Streams
    elsewhere: otlp.Elsewhere
    is_ready: Callable[[], bool]


class HttpPorts:
    """The ports of HTTP of a server."""

    def __init__(
        self, config: Config, gate: Gate, directory: Directory, metrics: Metrics | None
    ) -> None:
        """Take the settings, access control, the namespaces, and the metrics if there are any."""
        self._config = config
        self._gate = gate
        self._directory = directory
        self._metrics = metrics
        self._main: HttpServer | None = None
        self._otlp: HttpServer | None = None
        self._metrics_alone: HttpServer | None = None

    @property
    def port(self) -> int:
        """The port that serves everything; 0: none."""
        return self._main.port if self._main is not None else 0

    @property
    def otlp_port(self) -> int:
        """The port of OTLP alone; 0: none."""
        return self._otlp.port if self._otlp is not None else 0

    @property
    def metrics_port(self) -> int:
        """The port of metrics alone; 0: none."""
        return self._metrics_alone.port if self._metrics_alone is not None else 0

    @property
    def scheme(self) -> str:
        """The scheme of URLs of the ports, except that of metrics."""
        return "https" if self._gate.context else "http"

    async def start(self, calls: HttpCalls, advertised: str, *, shares_port: bool) -> None:
        """Listen on all ports that the settings name. Raises AddressInUse.

        Args:
            calls: What is needed to answer calls.
            advertised: The address at which clients reach the server.
            shares_port: Whether other processes listen on the same ports.
        """
        if self._metrics is not None:
            self._metrics.observe(self._directory, self._gate.guard)
        await self._serve_everything(calls, advertised, shares_port=shares_port)
        await self._serve_otlp(calls, shares_port=shares_port)
        await self._serve_metrics()
        self._directory.announce(http_port=self.port, otlp_http_port=self.otlp_port)

    async def stop_calls(self, grace: float) -> None:
        """Let calls end within `grace` seconds, then close all ports but that of metrics. May be called twice."""
        ports = [port for port in (self._main, self._otlp) if port is not None]
        await asyncio.gather(*[port.stop(grace) for port in ports])

    async def stop(self, grace: float) -> None:
        """Let calls end within `grace` seconds, then close all ports. May be called twice."""
        await self.stop_calls(grace)
        if self._metrics_alone is not None:
            await self._metrics_alone.stop(grace)

    async def _serve_everything(
        self, calls: HttpCalls, advertised: str, *, shares_port: bool
    ) -> None:
        config = self._config
        if not config.http_port:
            return
        if config.http_port_is_chosen:
            with listening("", config.host, config.http_port):
                self._main = await self._listening(calls, advertised, shares_port=shares_port)
            return
        try:
            port = config.http_port if config.port else 0
            self._main = await self._listening(calls, advertised, port=port)
        except OSError as error:
            self._main = await self._listening(calls, advertised, port=0)
            logger.warning(FALLS_BACK, config.http_port, error.strerror, self._main.port)

    async def _listening(
        self,
        calls: HttpCalls,
        advertised: str,
        *,
        port: int | None = None,
        shares_port: bool = False,
    ) -> HttpServer:
        """Return a server of everything that listens; by default on the port of the settings. Raises OSError."""
        config = self._config
        services: list[Service] = [
            *(self._connect(calls), self._traces(calls)),
            *(Pages(calls.is_ready), Console()),
        ]
        # Of several processes, the one that is asked would answer for itself alone.
        if self._metrics is not None and not shares_port:
            registry = self._metrics.registry
            services.append(MetricsPage(registry, "/metrics", self._admit_to_metrics))
        names = (config.host, advertised.rpartition(":")[0], socket.gethostname())
        allowed = _words(config.http_allow_hosts)
        rules = Browsers((*names, *allowed), _words(config.http_allow_origins))
        server = HttpServer(services, self._count, rules)
        port = config.http_port if port is None else port
        await self._listen(server, port, shares_port=shares_port)
        return server

    async def _listen(self, server: HttpServer, port: int, *, shares_port: bool = False) -> None:
        context = self._gate.context() if self._gate.context else None
        await server.start(self._config.host, port, context, shares_port=shares_port)

    async def _serve_otlp(self, calls: HttpCalls, *, shares_port: bool) -> None:
        host, port = self._config.host, self._config.otlp_http_port
        if port is None:
            return
        server = HttpServer([self._traces(calls)], self._count)
        with listening("", host, port):
            await self._listen(server, port, shares_port=shares_port)
        self._otlp = server
        where = f"{self.scheme}://{bracketed(host)}:{server.port}"
        logger.info("OTLP over HTTP on %s/v1/traces", where)

    async def _serve_metrics(self) -> None:
        host, port = self._config.metrics_host, self._config.metrics_port
        if self._metrics is None or port is None:
            return
        server = HttpServer([MetricsPage(self._metrics.registry)])
        with listening(FOR_METRICS, host, port):
            await server.start(host, port)
        self._metrics_alone = server
        logger.info("metrics on http://%s:%s/metrics", bracketed(host), server.port)

    def _count(self, name: str, code: str, seconds: float) -> None:
        """Count a call that gRPC's interceptors do not see."""
        if self._metrics is not None and self._config.counts_calls:
            self._metrics.count(name, code, seconds)

    def _traces(self, calls: HttpCalls) -> OtlpTraces:
        return OtlpTraces(self._directory, self._gate.guard, calls.streams, calls.elsewhere)

    def _connect(self, calls: HttpCalls) -> Connect:
        limit, budget = self._directory.limits.message_bytes, self._directory.shared.bodies
        return Connect(CONTRACT, calls.dispatcher, limit, budget, self._count)

    def _admit_to_metrics(self, request: web.Request) -> None:
        """Reject a request for the metrics without a valid token, where tokens are required."""
        if self._gate.guard is not None:
            metadata = [(key.lower(), value) for key, value in request.headers.items()]
            self._gate.guard.check_metrics(metadata, request.remote or "somebody")


def _words(text: str) -> list[str]:
    """Return the parts of a text that are separated by commas."""
    return [word.strip() for word in text.split(",") if word.strip()]
