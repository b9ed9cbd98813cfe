"""Metrics for Prometheus to scrape, as text or OpenMetrics."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

_METHODS = "OPTIONS,GET"
#: A port for metrics alone serves them at every path, as prometheus_client's own server does.
EVERY_PATH = "/{path:.*}"


class MetricsPage:
    """Serves the metrics of a registry."""

    def __init__(
        self,
        registry: CollectorRegistry,
        path: str = EVERY_PATH,
        admit: Callable[[web.Request], None] = lambda _: None,
    ) -> None:
        """Take the registry, the path, and what rejects requests; it raises StoreError."""
        self._registry = registry
        self._path = path
        self._admit = admit
        #: Composing the text takes milliseconds: in one thread, scrapes cannot hold the event loop.
        self._composer = ThreadPoolExecutor(1, "metrics")

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The routes."""
        page = web.get(self._path, self._metrics, allow_head=False)
        if self._path != EVERY_PATH:
            return (page,)
        return (
            web.get("/favicon.ico", self._nothing, allow_head=False),
            page,
            web.options(self._path, self._nothing),
        )

    def close(self) -> None:
        """Compose no more."""
        self._composer.shutdown(wait=False, cancel_futures=True)

    async def _nothing(self, request: web.Request) -> web.Response:
        return web.Response(headers={"Allow": _METHODS} if request.method == "OPTIONS" else None)

    async def _metrics(self, request: web.Request) -> web.Response:
        self._admit(request)
        loop = asyncio.get_running_loop()
        body, headers = await loop.run_in_executor(
            self._composer,
            self._composed,
            ",".join(request.headers.getall("Accept", ())),
            ",".join(request.headers.getall("Accept-Encoding", ())),
            request.query.getall("name[]", ()),
        )
        return web.Response(body=body, headers=headers)

    def _composed(
        self, accept: str, accept_encoding: str, names: Sequence[str]
    ) -> tuple[bytes, dict[str, str]]:
        """Return the body and its headers."""
        encoder, content_type = choose_encoder(accept)
        registry = self._registry.restricted_registry(names) if names else self._registry
        body, headers = encoder(registry), {"Content-Type": content_type}
        if gzip_accepted(accept_encoding):
            body, headers["Content-Encoding"] = gzip.compress(body), "gzip"
        return body, headers
