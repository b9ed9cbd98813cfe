"""Keeps web pages of other sites from a port that browsers can reach.

A page whose name resolves to this server's address (DNS rebinding) sends its own name as Host, and a page of another
site sends its Origin. Neither is served unless an option allows it. There are no cookies: a page sends a token itself.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from lightningstore.service.http.server import HttpError
from lightningstore.service.rules.errors import StoreError, quoted
from lightningstore.v1.error_reason_pb2 import ERROR_REASON_PERMISSION_DENIED

#: Content-Security-Policy of answers that set none: they load nothing, run nothing and are shown in no frame.
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "Content-Security-Policy": NOTHING,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
#: Seconds for which a browser remembers that an origin is allowed.
_REMEMBERED_SECONDS = "600"
_PORTS = {"http": 80, "https": 443}
#: Allows every name or origin.
ANY = "*"


class SiteDenied(StoreError):
    """The request names another host, or comes from a page of another site."""

    reason = ERROR_REASON_PERMISSION_DENIED


class Browsers:
    """What is asked of requests, and added to answers, on a port that browsers can reach."""

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        """Take the names under which the server is reached, and the origins whose pages may call it."""
        self._hosts = frozenset(host.lower() for host in hosts)
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def check(self, request: web.Request) -> None:
        """Reject a request for another host, or from a page of another site. Raises HttpError."""
        hosts = request.headers.getall("Host", [])
        host = hosts[0] if len(hosts) == 1 else ""
        if not self._is_own(host):
            text = (
                f"the host {quoted(host)} is not a name of this server: use its address, or add the name to "
                "--http-allow-hosts"
            )
            raise HttpError(421, SiteDenied(text))
        origin = request.headers.get("Origin")
        if origin is not None and not self._may_call(origin, host):
            text = f"pages of {quoted(origin)} may not call this server; --http-allow-origins allows it"
            raise HttpError(403, SiteDenied(text))

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the answer to a browser that asks whether it may send a request, None for any other request."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        headers = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Max-Age": _REMEMBERED_SECONDS,
        }
        requested = request.headers.get("Access-Control-Request-Headers")
        if requested is not None:
            headers["Access-Control-Allow-Headers"] = requested
        return web.Response(status=204, headers=headers)

    def complete(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add the headers that browsers obey."""
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        origin = request.headers.get("Origin")
        if self._origins:
            response.headers.add("Vary", "Origin")
        if origin is not None and self._is_allowed(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "*"

    def _is_own(self, host: str) -> bool:
        """Return whether a Host is an address, which no name can be made to stand for, or a name of this server."""
        name = _name_in(host)
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return bool(name) and (name in self._hosts or ANY in self._hosts or _is_address(name))

    def _may_call(self, origin: str, host: str) -> bool:
        return self._is_allowed(origin) or _authority(origin) == _authority(f"//{host}", origin)

    def _is_allowed(self, origin: str) -> bool:
        return ANY in self._origins or origin.lower() in self._origins


def _name_in(host: str) -> str:
    """Return the name or address in a Host header, without its port; "" if it is malformed."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    if parts.netloc != host or "@" in host:
        return ""
    return (parts.hostname or "").rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _authority(url: str, scheme_of: str = "") -> tuple[str, int | None] | None:
    """Return host and port of a URL, None if it is malformed; `scheme_of` is a URL with its scheme."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(urlsplit(scheme_of or url).scheme)
    except ValueError:
        return None
    return ((parts.hostname or "").rstrip("."), port) if parts.hostname else None
