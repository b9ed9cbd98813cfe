"""Which call gets which reward."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.steps import SLICE, Steps, sort
from lightningstore.v1.triplet_pb2 import (
    REWARD_POLICY_BY_SEQUENCE,
    REWARD_POLICY_FIRST_SIBLING,
)


def match(
    policy: int, nodes: Sequence[Node], calls: Iterable[Node]
) -> Steps[tuple[dict[bytes, Node], list[Node]]]:
    """Return the span with the reward by the span id of its call, and those that found no call.

    `nodes`: the whole tree, from above.
    """
    called = {node.span_id for node in calls}
    given: dict[bytes, Node] = {}
    if policy == REWARD_POLICY_BY_SEQUENCE:
        yield from _by_sequence(nodes, called, given)
    elif policy == REWARD_POLICY_FIRST_SIBLING:
        for at, node in enumerate(nodes):
            yield from _by_time(node.children, called, given)
            if at % SLICE == 0:
                yield
    else:
        yield from _by_time(nodes, called, given)
    used = {node.span_id for node in given.values()}
    left = [node for node in nodes if node.reward is not None and node.span_id not in used]
    return given, sort(left, key=lambda node: node.where)


def _by_time(nodes: Sequence[Node], called: set[bytes], given: dict[bytes, Node]) -> Steps[None]:
    """Give each reward to the call begun last among those met that ended before it and have none."""
    running: list[tuple[int, int, bytes]] = []
    ended: list[tuple[int, bytes]] = []
    for at, node in enumerate(sort(nodes, key=lambda node: node.order)):
        if node.reward is not None:
            while running and running[0][0] <= node.begin:
                _, met, call = heapq.heappop(running)
                heapq.heappush(ended, (-met, call))
            if ended:
                given[heapq.heappop(ended)[1]] = node
        if node.span_id in called:
            heapq.heappush(running, (node.finish, at, node.span_id))
        if at % SLICE == SLICE - 1:
            yield


def _by_sequence(
    nodes: Sequence[Node], called: set[bytes], given: dict[bytes, Node]
) -> Steps[None]:
    """Give each reward to the call with the highest smaller sequence id that has none."""
    free: list[Node] = []
    # Of equal numbers the rewards come first: a call must have a smaller one.
    order = sort(nodes, key=lambda n: (n.sequence_id, n.span_id in called, n.begin, n.span_id))
    for at, node in enumerate(order):
        if node.reward is not None:
            below = len(free)
            while below and free[below - 1].sequence_id == node.sequence_id:
                below -= 1  # a span that is both, beside others of its number
            if below:
                given[free.pop(below - 1).span_id] = node
        if node.span_id in called:
            free.append(node)
        if at % SLICE == SLICE - 1:
            yield
