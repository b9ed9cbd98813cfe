"""The pages of the HTTP port that need no token: what it serves, and whether the server lives and is ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from importlib.metadata import version

from aiohttp import web

_HOME = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>lightningstore</title>
<h1>lightningstore {version}</h1>
<ul>
<li>POST /lightningstore.v1.LightningStoreService/<i>Method</i>: every call of the contract, in JSON or protobuf (Connect)
<li>POST /v1/traces: spans, by OTLP over HTTP
<li><a href="metrics">/metrics</a>: Prometheus
<li><a href="healthz">/healthz</a>: the server runs
<li><a href="readyz">/readyz</a>: the server answers calls
</ul>
"""


class Pages:
    """Serves /, /healthz and /readyz."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        """Prepare the pages. `ready` tells whether the server answers calls."""
        self._ready = ready
        self._home = _HOME.format(version=escape(version("lightningstore")))

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The routes."""
        return (
            web.get("/", self._show_home),
            web.get("/healthz", self._is_alive),
            web.get("/readyz", self._is_ready),
        )

    def close(self) -> None:
        """Do nothing: the pages hold nothing."""

    async def _show_home(self, _: web.Request) -> web.Response:
        return web.Response(text=self._home, content_type="text/html")

    async def _is_alive(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _is_ready(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(text="not ready\n", status=503)
