"""Access to the server as its configuration says: addresses, certificates, tokens."""

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
    """What protects the ports of a server."""

    #: TLS of gRPC; None: plain text.
    credentials: grpc.ServerCredentials | None
    #: Makes the TLS context of asyncio; None: plain text.
    context: Callable[[], ssl.SSLContext] | None
    #: Checks tokens; None: no tokens, and no cost per call.
    guard: Guard | None
    #: Both, for people.
    description: str


def open_gate(config: Config, clock: Clock) -> Gate:
    """Read certificates and tokens. Raises Misconfigured, whose message is one line that says what to do."""
    if (config.tls_cert is None) != (config.tls_key is None):
        missing = "--tls-key" if config.tls_key is None else "--tls-cert"
        raise Misconfigured(
            f"--tls-cert and --tls-key must be given together; {missing} is missing"
        )
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise Misconfigured("--tls-client-ca requires --tls-cert and --tls-key")
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
        credentials,
        context,
        guard,
        " and ".join(words) or "none: every client that reaches the port has access",
    )


def peer_credentials(config: Config) -> grpc.ChannelCredentials:
    """Return the credentials of channels to other servers, which have the same certificates. Reads the files."""
    key = chain = None
    if (
        config.tls_client_ca is not None
        and config.tls_key is not None
        and config.tls_cert is not None
    ):
        key, chain = config.tls_key.read_bytes(), config.tls_cert.read_bytes()
    roots = config.peer_ca.read_bytes() if config.peer_ca is not None else None
    return grpc.ssl_channel_credentials(roots, key, chain)


def _check_exposure(config: Config) -> None:
    """Reject a configuration that gives the network access. Raises Misconfigured."""
    if config.insecure:
        return
    if config.metrics_port is not None and not is_loopback(config.metrics_host):
        raise Misconfigured(
            f"--metrics-host {config.metrics_host} gives every host that reaches it access to the metrics, "
            "which require no token; use 127.0.0.1, or add --insecure if a firewall protects the port"
        )
    if is_loopback(config.host):
        return
    where = f"listening on {config.host}"
    if config.auth_tokens is None and config.tls_client_ca is None:
        raise Misconfigured(
            f"{where} gives every host that reaches it access; add --auth-tokens with --tls-cert and --tls-key, "
            "or --tls-client-ca with them, or --insecure to allow it"
        )
    if config.tls_cert is None:
        raise Misconfigured(
            f"{where} with --auth-tokens but without TLS sends tokens in plain text; add --tls-cert and "
            "--tls-key, or --insecure if something else encrypts the connection"
        )


def is_loopback(host: str) -> bool:
    """Return whether all addresses of a host are loopback addresses."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        return False
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return all(address.is_loopback for address in addresses)
