"""Addresses of servers, and the options of a connection: its namespace, TLS, a token, metadata.

A token is a password. It is sent over TLS, or over plain text if the caller allows that. No repr and no error shows
it. Pickles contain it, with the names of the files, so that an unpickled client can connect.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import grpc
import grpc.aio
from lightningstore.client.namespaces import NAMESPACE_KEY, name_error

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Default deadline of a call in seconds, its retries included.
DEFAULT_TIMEOUT = 30.0

#: Address that a client connects to by default.
DEFAULT_ADDRESS = "127.0.0.1:4747"
#: Environment variable of the address.
ADDRESS_VARIABLE = "LIGHTNINGSTORE_ADDRESS"
#: Environment variable of the token.
TOKEN_VARIABLE = "LIGHTNINGSTORE_TOKEN"  # noqa: S105
#: Environment variable that allows a token over plain text if it is "1" or "true".
ALLOW_VARIABLE = "LIGHTNINGSTORE_ALLOW_INSECURE_TOKEN"
#: Environment variable of the namespace.
NAMESPACE_VARIABLE = "LIGHTNINGSTORE_NAMESPACE"
#: Environment variables of the files in PEM: CA certificates, client certificate, its key.
CA_VARIABLE = "LIGHTNINGSTORE_TLS_CA"
CERT_VARIABLE = "LIGHTNINGSTORE_TLS_CERT"
KEY_VARIABLE = "LIGHTNINGSTORE_TLS_KEY"

#: A host without a port, as grpc would take it for port 443.
_HOST_ALONE = re.compile(r"[^:/\[\],]+|\[[^\]]*\]")
#: Prefix of an address with TLS.
HTTPS = "https://"
#: Metadata key of the token.
AUTHORIZATION = "authorization"

#: A path of a file.
FilePath = str | os.PathLike[str]


class ConnectionOptions(TypedDict, total=False):
    """The keyword arguments of a connection, for everything that takes an address: clients, runners, exporters.

    Options that are unset or None are read from the environment.

    Attributes:
        namespace: Namespace of all calls: 1 to 63 of a-z 0-9 - _ . with a letter or digit at both ends. Unset:
            LIGHTNINGSTORE_NAMESPACE. "": none is sent, and the server uses "default".
        metadata: gRPC metadata sent with every call. Keys are in lower case.
        token: The token that `lightningstore token new` printed. Unset: LIGHTNINGSTORE_TOKEN. "": no token.
        tls_ca: CA certificates (PEM file) used to verify the server. Unset: LIGHTNINGSTORE_TLS_CA, or gRPC's
            certificates of public authorities.
        tls_cert: Certificate of the client (PEM file), for mutual TLS. Unset: LIGHTNINGSTORE_TLS_CERT.
        tls_key: Key of that certificate (PEM file, not encrypted). Unset: LIGHTNINGSTORE_TLS_KEY.
        allow_insecure_token: Whether the token may be sent over plain text. Unset:
            LIGHTNINGSTORE_ALLOW_INSECURE_TOKEN.

    Example:
        options: ConnectionOptions = {"token": "lst_...", "allow_insecure_token": True}
        store = LightningStore("127.0.0.1:4747", **options)
    """

    namespace: str | None
    metadata: Mapping[str, str] | None
    token: str | None
    tls_ca: FilePath | None
    tls_cert: FilePath | None
    tls_key: FilePath | None
    allow_insecure_token: bool


def check_names(options: Mapping[str, object]) -> None:
    """Reject keyword arguments that are not connection options.

    Args:
        options: The keyword arguments.

    Raises:
        TypeError: An argument is not a field of `ConnectionOptions`.
    """
    if unknown := sorted(set(options) - ConnectionOptions.__optional_keys__):
        raise TypeError(f"unexpected keyword argument: {', '.join(unknown)}")


@dataclass(frozen=True)
class Endpoint:
    """The address and the credentials of a connection, resolved from arguments and environment.

    Args:
        address: The address as gRPC takes it, without "https://".
        metadata: Keys and values sent with every call, the token included.
        secure: Whether the connection uses TLS.
        tls_ca: CA certificates (PEM file). Empty: gRPC's certificates of public authorities.
        tls_cert: Certificate of the client (PEM file). Empty: none.
        tls_key: Key of that certificate (PEM file). Empty: none.
    """

    address: str
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secure: bool = False
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def blocking_channel(self, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Create a blocking channel.

        Args:
            options: Options of the gRPC channel.

        Returns:
            The channel, which connects with its first call.

        Raises:
            OSError: A file cannot be read.
        """
        if not self.secure:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, self._credentials(), options)

    @property
    def namespace(self) -> str:
        """Namespace of all calls. Empty: they name none, and belong to "default"."""
        return dict(self.metadata).get(NAMESPACE_KEY, "")

    def async_channel(self, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """Create an asyncio channel on the running event loop.

        Args:
            options: Options of the gRPC channel.

        Returns:
            The channel, which connects with its first call.

        Raises:
            OSError: A file cannot be read.
        """
        if not self.secure:
            return grpc.aio.insecure_channel(self.address, options)
        return grpc.aio.secure_channel(self.address, self._credentials(), options)

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            _read(self.tls_ca), _read(self.tls_key), _read(self.tls_cert)
        )

    def check(self) -> None:
        """Check the TLS files now, and not with the first call.

        Raises:
            ValueError: A file does not contain what it should, or one of `tls_cert` and `tls_key` is missing.
            OSError: A file cannot be read.
        """
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key must be given together")
        for path in filter(None, (self.tls_ca, self.tls_cert, self.tls_key)):
            _read(path)  # an OSError that names the file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.tls_ca:
            try:
                context.load_verify_locations(self.tls_ca)
            except ssl.SSLError:
                raise ValueError(f"{self.tls_ca} contains no certificate in PEM") from None
        if self.tls_cert:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
            except ssl.SSLError as error:
                raise ValueError(
                    f"{self.tls_cert} and {self.tls_key} must contain a certificate and its unencrypted "
                    f"key in PEM: {error.reason}"
                ) from None


def endpoint(address: str | None, **options: Unpack[ConnectionOptions]) -> Endpoint:
    """Resolve the address and the options of a connection, with the environment as default.

    Args:
        address: "host:port", or "https://host:port" for TLS. None: LIGHTNINGSTORE_ADDRESS, or 127.0.0.1:4747.
        **options: See `ConnectionOptions`.

    Returns:
        The resolved endpoint. Its files have been checked.

    Raises:
        ValueError: The address, the namespace, the token or a file is invalid, or the token would be sent over plain
            text.
        OSError: A file cannot be read.
        TypeError: An option is unknown.
    """
    check_names(options)
    target = resolve(address)
    files = [
        os.fspath(path) if path is not None else os.environ.get(variable, "")
        for path, variable in (
            (options.get("tls_ca"), CA_VARIABLE),
            (options.get("tls_cert"), CERT_VARIABLE),
            (options.get("tls_key"), KEY_VARIABLE),
        )
    ]
    secure = target.startswith(HTTPS) or any(files)
    pairs = {key.lower(): value for key, value in (options.get("metadata") or {}).items()}
    namespace = options.get("namespace")
    if namespace is None:
        namespace = pairs.get(NAMESPACE_KEY, os.environ.get(NAMESPACE_VARIABLE, ""))
    if namespace and (error := name_error(namespace)):
        raise ValueError(f"namespace {error}")
    pairs.pop(NAMESPACE_KEY, None)
    if namespace:
        pairs[NAMESPACE_KEY] = namespace
    token = options.get("token")
    if secret := (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip():
        pairs[AUTHORIZATION] = f"Bearer {secret}"
    if not (sent := pairs.get(AUTHORIZATION, "")).isascii() or not sent.isprintable():
        raise ValueError("a token must be printable ASCII")  # gRPC would print it in its error
    plain_text = os.environ.get(ALLOW_VARIABLE, "").lower() in ("1", "true")
    allowed = options.get("allow_insecure_token") or plain_text
    if sent and not secure and not allowed:
        raise ValueError(
            f"the token would be sent to {target} in plain text: use https://{target}, or pass "
            "allow_insecure_token=True"
        )
    resolved = Endpoint(
        target.removeprefix(HTTPS).rstrip("/"), tuple(pairs.items()), secure, *files
    )
    if secure:
        resolved.check()
    return resolved


def resolve(address: str | None) -> str:
    """Return an address, with the environment and the default address as defaults.

    Args:
        address: "host:port", or "https://host:port" for TLS. None: LIGHTNINGSTORE_ADDRESS, or 127.0.0.1:4747.

    Returns:
        The address, "https://" included.

    Raises:
        ValueError: The address has another form.
    """
    if address is None:
        address = os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    if address.startswith(HTTPS):
        wrong = "/" in address.removeprefix(HTTPS).rstrip("/")
    else:
        wrong = "://" in address.replace("dns://", "").replace("unix://", "")
    if not address or wrong:
        raise ValueError(
            f"the address must look like {DEFAULT_ADDRESS} or https://store:4747, not {address!r}"
        )
    if _HOST_ALONE.fullmatch(address.removeprefix(HTTPS).rstrip("/")):
        raise ValueError(
            f"the address {address!r} has no port: {address.rstrip('/')}:4747 if it is the default one"
        )
    return address


def protocol_hint(address: str, details: str) -> str:
    """Return what is wrong with an address, as far as the error of a call tells.

    Args:
        address: The address without "https://".
        details: The message of the UNAVAILABLE error.

    Returns:
        What is wrong and what would be right. Empty: nothing, the server may just be down.
    """
    if "WRONG_VERSION_NUMBER" in details:
        return (
            f"the server at {address} does not use TLS: write {address} without https:// and "
            "without certificates"
        )
    if "http1.x server" in details:
        return (
            f"{address} serves HTTP/1, like the ports of OTLP over HTTP and of metrics: name the "
            "gRPC port, by default 4747"
        )
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return f"the certificate of {address} is not trusted: name its CA certificates (tls_ca)"
    if "Expected SETTINGS frame" in details:
        return f"the server at {address} does not answer as gRPC does: if it uses TLS, write https://{address}"
    return ""


def _read(path: str) -> bytes | None:
    if not path:
        return None
    return Path(path).read_bytes()
