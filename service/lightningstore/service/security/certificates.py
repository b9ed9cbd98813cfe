"""The server's certificate files, reloaded when they change."""

from __future__ import annotations

import contextlib
import logging
import ssl
from pathlib import Path
from typing import Any

import grpc
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security.tokens import Signature, signature

logger = logging.getLogger(__name__)

Pems = tuple[bytes, ...]


class CertificateFiles:
    """A certificate, its key and, for mutual TLS, the CA certificates that verify clients."""

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Load the files.

        Raises:
            Misconfigured: A file is missing, unreadable or does not match the others.
        """
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._paths = [path for path in (cert, key, client_ca) if path is not None]
        self._seen = self._signatures()
        self._current = self._read()
        #: The configuration that gRPC received last, from which the other TLS contexts are built.
        self._given = self._current

    def credentials(self) -> grpc.ServerCredentials:
        """Return gRPC credentials that check the files before each handshake."""
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._current),
            self._changed,
            require_client_authentication=self._client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """Return a TLS context for asyncio that checks the files before each handshake."""
        latest, of = self._context(), self._current

        def renew(handshake: ssl.SSLObject, _name: str | None, _: ssl.SSLContext) -> None:
            nonlocal latest, of
            self._refresh()
            if of is not self._current:
                # If the files change at this moment, the next handshake loads them again.
                with contextlib.suppress(ssl.SSLError, OSError):
                    latest, of = self._context(), self._current
            handshake.context = latest

        first = self._context()
        first.sni_callback = renew  # called at every handshake, whether or not a name is asked for
        return first

    def _context(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._cert, self._key, password="")
        if self._client_ca is not None:
            context.load_verify_locations(cadata=self._current[2].decode())
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def _changed(self) -> Any:
        """Return a new configuration if the files have changed. gRPC calls this in its own thread."""
        self._refresh()
        if self._given is self._current:
            return None
        self._given = self._current
        return _configuration(self._given)

    def _refresh(self) -> None:
        """Load the files again if they have changed."""
        seen = self._signatures()
        if seen == self._seen:
            return
        self._seen = seen  # a bad state is complained of once
        try:
            self._current = self._read()
        except Misconfigured as error:
            logger.error("%s; the previous certificate stays in use", error)
        else:
            logger.info("the certificate in %s was reloaded", self._cert)

    def _signatures(self) -> list[Signature]:
        found: list[Signature] = []
        for path in self._paths:
            try:
                found.append(signature(path.stat()))
            except OSError:
                found.append(())
        return found

    def _read(self) -> Pems:
        """Return the contents of the files. Raises Misconfigured."""
        pems = tuple(_bytes_of(path) for path in self._paths)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # The empty password keeps OpenSSL from prompting on the terminal.
            context.load_cert_chain(self._cert, self._key, password="")
        except (ssl.SSLError, OSError) as error:
            raise Misconfigured(self._what_is_wrong(context, error)) from None
        if self._client_ca is not None:
            check_authority(self._client_ca, pems[2])
        return pems

    def _what_is_wrong(self, context: ssl.SSLContext, error: OSError) -> str:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            return f"{self._key} is not the key of the certificate {self._cert}"
        try:
            context.load_verify_locations(self._cert)
        except (ssl.SSLError, OSError):
            return f"{self._cert} contains no PEM certificate"
        return f"{self._key} contains no unencrypted PEM private key"


def check_authority(path: Path, pem: bytes) -> None:
    """Raise Misconfigured for a file that contains no certificate."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cadata=pem.decode())
    except (ssl.SSLError, ValueError):
        raise Misconfigured(f"{path} contains no PEM certificate") from None


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Misconfigured(f"{path} cannot be read: {error.strerror}") from None


def _configuration(pems: Pems) -> Any:
    cert, key, *client_ca = pems
    return grpc.ssl_server_certificate_configuration([(key, cert)], *client_ca)
