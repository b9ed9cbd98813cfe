"""The pages of the HTTP port for supervisors, which need no token: whether the server lives, and whether it is ready."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aiohttp import web


class Pages:
    """Serves /healthz and /readyz."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        """Prepare the pages. `ready` tells whether the server answers calls."""
        self._ready = ready

    @property
    def routes(self) -> Sequence[web.RouteDef]:
        """The routes."""
        return (
            web.get("/healthz", self._is_alive),
            web.get("/readyz", self._is_ready),
        )

    def close(self) -> None:
        """Do nothing: the pages hold nothing."""

    async def _is_alive(self, _: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def _is_ready(self, _: web.Request) -> web.Response:
        if self._ready():
            return web.Response(text="ready\n")
        return web.Response(text="not ready\n", status=503)
