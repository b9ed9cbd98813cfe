"""Which server owns a namespace, where several share them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b


def preferred_server(namespace: str, servers: Iterable[str]) -> str:
    """Return the server that should own a namespace, by rendezvous hashing.

    All servers that know the same list agree without talking to each other, and a server that joins or leaves moves
    only the namespaces that it gains or had.

    Args:
        namespace: Name of the namespace.
        servers: Ids of the live servers, at least one.
    """
    return max(servers, key=lambda server: (_weight(namespace, server), server))


def _weight(namespace: str, server: str) -> bytes:
    return blake2b(f"{namespace}\0{server}".encode(), digest_size=8).digest()
