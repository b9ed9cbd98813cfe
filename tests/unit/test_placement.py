"""Which server owns a namespace, and what each server does about it."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.rules.placement import Placed, Plan, plan, server_for

SERVERS = st.lists(
    st.text("abcdefgh0123456789", min_size=1, max_size=8), min_size=1, max_size=8, unique=True
)
NAMES = [f"run-{number}" for number in range(200)]


@given(SERVERS, st.randoms(use_true_random=False))
def test_the_order_of_the_servers_does_not_matter(servers: list[str], random: Random) -> None:
    shuffled = random.sample(servers, len(servers))
    assert all(server_for(n, servers) == server_for(n, shuffled) for n in NAMES[:20])


@given(SERVERS)
def test_a_server_that_leaves_moves_nothing_but_what_it_had(servers: list[str]) -> None:
    gone, *others = servers
    for name in NAMES[:50] if others else ():
        before = server_for(name, servers)
        if before != gone:
            assert server_for(name, others) == before


def test_namespaces_spread_evenly() -> None:
    counts = Counter(server_for(name, ["a", "b", "c", "d"]) for name in NAMES)
    assert all(30 <= counts[server] <= 70 for server in "abcd")


def test_the_choice_of_an_operator_counts_while_that_server_lives() -> None:
    assert {server_for(name, ["a", "b"], "b") for name in NAMES} == {"b"}
    assert {server_for(name, ["a", "b"], "gone") for name in NAMES} == {"a", "b"}


def test_only_live_namespaces_without_an_owner_are_taken() -> None:
    spaces = [
        Placed("idle"),
        Placed("live", is_live=True),
        Placed("mine", owner="a", is_live=True),
        Placed("theirs", owner="b", is_live=True),
    ]
    assert plan("a", ["a"], spaces, is_settled=True) == Plan(take=("live",))


def test_a_namespace_moves_once_the_servers_have_settled_or_when_an_operator_says_so() -> None:
    name = next(name for name in NAMES if server_for(name, ["a", "b"]) == "b")
    mine, moved = Placed(name, owner="a"), Placed("moved", owner="a", wanted="b")
    assert plan("a", ["a", "b"], [mine, moved], is_settled=False) == Plan(hand_over=("moved",))
    assert plan("a", ["a", "b"], [mine], is_settled=True) == Plan(hand_over=(name,))


def test_a_server_that_is_draining_takes_nothing_and_hands_everything_over() -> None:
    spaces = [Placed("free", is_live=True), Placed("mine", owner="a")]
    assert plan("a", ["b"], spaces, is_settled=True) == Plan(hand_over=("mine",))
    assert plan("a", [], spaces, is_settled=True) == Plan()


@given(
    SERVERS,
    st.sets(st.sampled_from(NAMES), max_size=20),
    st.randoms(use_true_random=False),
    st.booleans(),
)
def test_the_plans_of_all_servers_converge(
    servers: list[str], names: set[str], random: Random, wants: bool
) -> None:
    """After one round each namespace is free or with its server, after two it has exactly one owner, for good."""
    spaces = {
        name: Placed(
            name,
            owner=random.choice(["", *servers]),
            wanted=random.choice(servers) if wants else "",
            is_live=True,
        )
        for name in names
    }
    for _ in range(2):
        plans = {me: plan(me, servers, spaces.values(), is_settled=True) for me in servers}
        taken = [name for each in plans.values() for name in each.take]
        assert len(taken) == len(set(taken))
        for me, each in plans.items():
            for name in each.take:
                spaces[name] = Placed(name, me, spaces[name].wanted, is_live=True)
            for name in each.hand_over:
                spaces[name] = Placed(name, "", spaces[name].wanted, is_live=True)
    for space in spaces.values():
        assert space.owner == server_for(space.name, servers, space.wanted)
    assert all(plan(me, servers, spaces.values(), is_settled=True) == Plan() for me in servers)
