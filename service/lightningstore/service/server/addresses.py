"""Addresses that the server listens on."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from lightningstore.service.server.config import Config

#: Purpose of --metrics-port in errors about its address.
FOR_METRICS = "for metrics "
#: Log line of a server whose default port for HTTP is taken, by another server most likely.
FALLS_BACK = "port %s is not free (%s): HTTP is served on port %s; --http-port chooses another"


class AddressInUse(Exception):
    """The server cannot listen on an address."""


def check_addresses(config: Config) -> None:
    """Raise AddressInUse for addresses that cannot be listened on, before any file is touched."""
    for purpose, host, port in (
        ("", config.host, config.port),
        ("", config.host, config.http_port or None if config.http_port_is_chosen else None),
        ("", config.host, config.otlp_http_port),
        (FOR_METRICS, config.metrics_host, config.metrics_port),
    ):
        if port is not None:
            with listening(purpose, host, port):
                _probe(host, port)


def _probe(host: str, port: int) -> None:
    """Listen for a moment, before any file is touched. Raises OSError."""
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)


@contextlib.contextmanager
def listening(purpose: str, host: str, port: int) -> Iterator[None]:
    """Turn the error of an address that cannot be listened on into AddressInUse."""
    try:
        yield
    except OSError as error:
        where = f"{purpose}on {bracketed(host)}:{port}"
        raise AddressInUse(f"cannot listen {where}: {error.strerror}") from None


def bracketed(host: str) -> str:
    """Return a host as it stands before a port: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
