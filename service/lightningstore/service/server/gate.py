"""What a Config means for who gets in: the rule for addresses, certificates, tokens."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable
from typing import NamedTuple

import grpc
from lightningstore.service.engine.clock import Clock
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security.certificates import CertificateFiles
from lightningstore.service.security.interceptor import Guard
from lightningstore.service.security.tokens import TokenFile
from lightningstore.service.server.config import Config


class Gate(NamedTuple):
    """What the server puts before its calls."""

    #: None: plain text.
    credentials: grpc.ServerCredentials | None
    #: Makes the same for asyncio. None: plain text.
    context: Callable[[], ssl.SSLContext] | None
    #: None: no tokens, and no cost to any call.
    guard: Guard | None
    #: Both in words, for people.
    description: str


def open_gate(config: Config, clock: Clock) -> Gate:
    """Read certificates and tokens. Raises Misconfigured, with one line that says what to do."""
    if (config.tls_cert is None) != (config.tls_key is None):
        missing = "--tls-key" if config.tls_key is None else "--tls-cert"
        raise Misconfigured(f"--tls-cert and --tls-key go together: {missing} is missing")
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise Misconfigured("--tls-client-ca needs --tls-cert and --tls-key")
    _check_exposure(config)
    words = []
    credentials = context = guard = None
    if config.tls_cert is not None and config.tls_key is not None:
        files = CertificateFiles(config.tls_cert, config.tls_key, config.tls_client_ca)
        credentials, context = files.credentials(), files.context
        words.append("mutual TLS" if config.tls_client_ca else "TLS")
    if config.auth_tokens is not None:
        guard = Guard(TokenFile(config.auth_tokens, clock), clock)
        words.append("tokens")
    return Gate(
        credentials, context, guard, " and ".join(words) or "everybody who reaches the port"
    )


def _check_exposure(config: Config) -> None:
    """Refuse to stand open to the network. Raises Misconfigured."""
    if config.insecure:
        return
    if config.metrics_port is not None and not is_loopback(config.metrics_host):
        raise Misconfigured(
            f"--metrics-host {config.metrics_host} shows the metrics to everybody who reaches it, for "
            "they ask for no token: leave it at 127.0.0.1, or --insecure if something else guards that port"
        )
    if is_loopback(config.host):
        return
    where = f"listening on {config.host}"
    if config.auth_tokens is None and config.tls_client_ca is None:
        raise Misconfigured(
            f"{where} lets in everybody who reaches it: give --auth-tokens with --tls-cert and "
            "--tls-key, or --tls-client-ca with them, or --insecure if that is what you want"
        )
    if config.tls_cert is None:
        raise Misconfigured(
            f"{where} with --auth-tokens alone has tokens travel in plain text: give --tls-cert and "
            "--tls-key, or --insecure if something else encrypts the connection"
        )


def is_loopback(host: str) -> bool:
    """Tell whether all addresses of a host are this machine's own, out of the network's reach."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return all(address.is_loopback for address in addresses)
