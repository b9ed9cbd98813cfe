"""Where a client connects, and what it shows there: TLS, a token, metadata.

A token is a password. It goes over TLS, or the caller says that plain text will do; it is in no repr and in
no error. Pickles hold it, and the names of the files, for a client that is unpickled has to get in too.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import grpc
import grpc.aio

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: Deadline in seconds of calls for which nothing else is said, their retries included.
DEFAULT_TIMEOUT = 30.0

DEFAULT_ADDRESS = "127.0.0.1:4747"
ADDRESS_VARIABLE = "LIGHTNINGSTORE_ADDRESS"
TOKEN_VARIABLE = "LIGHTNINGSTORE_TOKEN"  # noqa: S105
ALLOW_VARIABLE = "LIGHTNINGSTORE_ALLOW_INSECURE_TOKEN"
CA_VARIABLE = "LIGHTNINGSTORE_TLS_CA"
CERT_VARIABLE = "LIGHTNINGSTORE_TLS_CERT"
KEY_VARIABLE = "LIGHTNINGSTORE_TLS_KEY"

HTTPS = "https://"
AUTHORIZATION = "authorization"

FilePath = str | os.PathLike[str]


class ConnectionOptions(TypedDict, total=False):
    """The keyword arguments of a connection, of whatever takes an address: clients, runners, exporters.

    What is unset, or None, comes from the environment.
    """

    #: gRPC metadata sent with every call, keys in lower case.
    metadata: Mapping[str, str] | None
    #: What `lightningstore token new` printed. Unset: LIGHTNINGSTORE_TOKEN; "": none.
    token: str | None
    #: File of the authorities that may have signed the server's certificate, in PEM. Unset:
    #: LIGHTNINGSTORE_TLS_CA, or the well-known authorities.
    tls_ca: FilePath | None
    #: The client's own certificate, in PEM, for mutual TLS. Unset: LIGHTNINGSTORE_TLS_CERT.
    tls_cert: FilePath | None
    #: Its key, in PEM. Unset: LIGHTNINGSTORE_TLS_KEY.
    tls_key: FilePath | None
    #: Whether the token may go over plain text.
    allow_insecure_token: bool


def check_names(options: Mapping[str, object]) -> None:
    """Raise TypeError for a keyword argument that is not one of ConnectionOptions."""
    if unknown := sorted(set(options) - ConnectionOptions.__optional_keys__):
        raise TypeError(f"unexpected keyword argument: {', '.join(unknown)}")


@dataclass(frozen=True)
class Endpoint:
    """A place to connect to, ready to be used."""

    #: As gRPC dials it.
    address: str
    #: Sent with every call.
    metadata: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    secure: bool = False
    #: Files in PEM. No authority: the well-known ones that come with gRPC.
    tls_ca: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    def blocking_channel(self, options: Sequence[tuple[str, Any]]) -> grpc.Channel:
        """Return a blocking channel. Raises ValueError, OSError for files that cannot be used."""
        if not self.secure:
            return grpc.insecure_channel(self.address, options)
        return grpc.secure_channel(self.address, self._credentials(), options)

    def async_channel(self, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
        """Return an asyncio channel. Raises ValueError, OSError for files that cannot be used."""
        if not self.secure:
            return grpc.aio.insecure_channel(self.address, options)
        return grpc.aio.secure_channel(self.address, self._credentials(), options)

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(
            _read(self.tls_ca), _read(self.tls_key), _read(self.tls_cert)
        )

    def check(self) -> None:
        """Refuse files that cannot be used now, not at the first call. Raises ValueError, OSError."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key go together")
        for path in filter(None, (self.tls_ca, self.tls_cert, self.tls_key)):
            _read(path)  # an OSError that names the file
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.tls_ca:
            try:
                context.load_verify_locations(self.tls_ca)
            except ssl.SSLError:
                raise ValueError(f"{self.tls_ca} holds no certificate in PEM") from None
        if self.tls_cert:
            try:
                context.load_cert_chain(self.tls_cert, self.tls_key, password="")
            except ssl.SSLError as error:
                raise ValueError(
                    f"{self.tls_cert} and {self.tls_key} are no certificate and its unencrypted key "
                    f"in PEM: {error.reason}"
                ) from None


def endpoint(address: str | None, **options: Unpack[ConnectionOptions]) -> Endpoint:
    """Return what the arguments of a client, and the environment where they are unset, come to.

    Raises ValueError for a bad address, for files and tokens that are none, and for a token that would go
    over plain text; OSError for files that cannot be read; TypeError for an unknown option.
    """
    check_names(options)
    target = resolve(address)
    files = [
        os.fspath(given) if given is not None else os.environ.get(variable, "")
        for given, variable in (
            (options.get("tls_ca"), CA_VARIABLE),
            (options.get("tls_cert"), CERT_VARIABLE),
            (options.get("tls_key"), KEY_VARIABLE),
        )
    ]
    secure = target.startswith(HTTPS) or any(files)
    pairs = {key.lower(): value for key, value in (options.get("metadata") or {}).items()}
    token = options.get("token")
    if secret := (os.environ.get(TOKEN_VARIABLE, "") if token is None else token).strip():
        pairs[AUTHORIZATION] = f"Bearer {secret}"
    if not (sent := pairs.get(AUTHORIZATION, "")).isascii() or not sent.isprintable():
        raise ValueError("a token is printable ASCII")  # gRPC would refuse it too, and print it
    plain_text = os.environ.get(ALLOW_VARIABLE, "").lower() in ("1", "true")
    allowed = options.get("allow_insecure_token") or plain_text
    if sent and not secure and not allowed:
        raise ValueError(
            f"the token would go to {target} in plain text: use https://{target}, or say "
            "allow_insecure_token=True"
        )
    found = Endpoint(target.removeprefix(HTTPS).rstrip("/"), tuple(pairs.items()), secure, *files)
    if secure:
        found.check()
    return found


def resolve(address: str | None) -> str:
    """Return the address given, else the environment's, else the default. Raises ValueError."""
    found = address if address is not None else os.environ.get(ADDRESS_VARIABLE, DEFAULT_ADDRESS)
    if found.startswith("https://"):
        wrong = "/" in found[8:].rstrip("/")
    else:
        wrong = "://" in found.replace("dns://", "").replace("unix://", "")
    if not found or wrong:
        raise ValueError(
            f"an address like {DEFAULT_ADDRESS} or https://store:4747 is wanted, not {found!r}"
        )
    return found


def _read(path: str) -> bytes | None:
    if not path:
        return None
    return Path(path).read_bytes()
