"""Which server owns a namespace, where several share them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b


@dataclass(frozen=True)
class Placed:
    """What all servers can see of a namespace."""

    name: str
    #: Id of the server that owns it; empty if none does, or if the lease of the one that did has ended.
    owner: str = ""
    #: Id of the server that an operator has moved it to; empty if none has.
    wanted: str = ""
    #: Whether it has live records: then it needs an owner although no client calls it, so that deadlines fire.
    is_live: bool = False


@dataclass(frozen=True)
class Plan:
    """What one server does next."""

    #: Namespaces to open.
    take: tuple[str, ...] = ()
    #: Namespaces to close, so that the server that should own them can open them.
    hand_over: tuple[str, ...] = ()


def server_for(namespace: str, servers: Sequence[str], wanted: str = "") -> str:
    """Return the server that should own a namespace, by rendezvous hashing.

    All servers that know the same list agree without talking to each other, and a server that joins or leaves moves
    only the namespaces that it gains or had.

    Args:
        namespace: Name of the namespace.
        servers: Ids of the live servers, at least one, in any order.
        wanted: Id of the server that an operator has chosen. It is ignored unless it is live.
    """
    if wanted in servers:
        return wanted
    return max(servers, key=lambda server: (_weight(namespace, server), server))


def plan(
    me: str, servers: Sequence[str], namespaces: Iterable[Placed], *, is_settled: bool
) -> Plan:
    """Return what a server does next.

    Args:
        me: Id of the server.
        servers: Ids of the live servers that accept namespaces. Without `me` the server only hands over.
        namespaces: All namespaces.
        is_settled: Whether the list of servers has been the same for a while. Until then namespaces stay where they
            are, unless an operator has moved them: a server that restarts must not make them move twice.
    """
    if not servers:
        return Plan()
    take, hand_over = [], []
    for placed in namespaces:
        if placed.owner not in ("", me):
            continue
        best = server_for(placed.name, servers, placed.wanted)
        if best == me and not placed.owner and placed.is_live:
            take.append(placed.name)
        elif best != me and placed.owner == me and (is_settled or best == placed.wanted):
            hand_over.append(placed.name)
    return Plan(tuple(take), tuple(hand_over))


def _weight(namespace: str, server: str) -> bytes:
    return blake2b(f"{namespace}\0{server}".encode(), digest_size=8).digest()
