"""Which server owns a namespace."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.rules.placement import preferred_server

SERVERS = st.sets(st.text("abcdefgh0123456789", min_size=1, max_size=8), min_size=1, max_size=8)
NAMES = [f"run-{number}" for number in range(200)]


@given(SERVERS, st.randoms())
def test_the_order_of_the_servers_does_not_matter(servers: set[str], dice: object) -> None:
    shuffled = sorted(servers)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    assert all(preferred_server(n, servers) == preferred_server(n, shuffled) for n in NAMES[:20])


@given(SERVERS)
def test_a_server_that_leaves_moves_nothing_but_what_it_had(servers: set[str]) -> None:
    if len(servers) == 1:
        return
    gone = min(servers)
    for name in NAMES[:50]:
        before = preferred_server(name, servers)
        if before != gone:
            assert preferred_server(name, servers - {gone}) == before


def test_namespaces_spread_evenly() -> None:
    owners = [preferred_server(name, ("a", "b", "c", "d")) for name in NAMES]
    assert all(30 <= owners.count(server) <= 70 for server in "abcd")
