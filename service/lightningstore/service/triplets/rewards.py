"""Rewards: how they are written into spans, and which call gets which."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lightningstore.service.triplets.steps import SLICE, Steps
from lightningstore.service.triplets.values import (
    Attributes,
    Warnings,
    number,
    plain,
    read_json,
    read_literal,
)
from lightningstore.v1.triplet_pb2 import (
    REWARD_POLICY_BY_SEQUENCE,
    REWARD_POLICY_FIRST_SIBLING,
    RewardDimension,
    TripletReward,
)

if TYPE_CHECKING:
    from lightningstore.service.triplets.nodes import Node

PREFIX = "agentlightning.reward"
_AGENTOPS = ("agentops.task.output", "agentops.entity.output")
_ANNOTATION = "agentlightning.annotation"
KEYS = (PREFIX, *_AGENTOPS, "reward")
PRIMARY = "primary"
MALFORMED = "no reward: a finite number is wanted"


class Dimension(NamedTuple):
    """One number of a reward."""

    name: str
    value: float


#: All dimensions, the primary one first.
Reward = tuple[Dimension, ...]


def message(node: Node) -> TripletReward:
    """Return the reward of a span as message."""
    assert node.reward is not None  # noqa: S101  (callers choose spans by it)
    return TripletReward(
        value=node.reward[0].value,
        dimensions=[RewardDimension(name=d.name, value=d.value) for d in node.reward],
        span_id=node.span_id.hex(),
        sequence_id=node.sequence_id,
    )


def final(value: float) -> TripletReward:
    """Return a reward that comes with the request."""
    return TripletReward(value=value, dimensions=[RewardDimension(name=PRIMARY, value=value)])


# Reading


def read(node: Node, name: str, found: Attributes, warnings: Warnings) -> None:
    """Find the reward of a span, in the first of the places where one may be written."""
    numbered = [key for key in found if key.startswith(f"{PREFIX}.")]
    if numbered:
        node.holds_reward = _read_numbered(node, numbered, found, warnings)
        if node.holds_reward:
            return
    if PREFIX in found:
        node.holds_reward = True
        node.reward = _checked(node, PREFIX, plain(found[PREFIX]), warnings)
        return
    for key in _AGENTOPS:
        if key in found and _read_output(node, key, found, warnings):
            return
    if "reward" in found and name in (_ANNOTATION, PREFIX):
        node.holds_reward = True
        node.reward = _checked(node, "reward", plain(found["reward"]), warnings)


def _read_numbered(node: Node, keys: Iterable[str], found: Attributes, warnings: Warnings) -> bool:
    """Read `agentlightning.reward.<i>.name` and `.value`. False if there is no value among the keys."""
    values: dict[int, str] = {}
    for key in keys:
        digits, _, last = key[len(PREFIX) + 1 :].partition(".")
        if last == "value" and digits.isascii() and digits.isdecimal() and len(digits) < 10:
            values[int(digits)] = key
    dimensions: list[Dimension] = []
    for place, index in enumerate(sorted(values)):
        key = values[index]
        value = number(plain(found[key]))
        if value is None:
            warnings.add(node.where, key, MALFORMED)
            if place == 0:
                return True  # another dimension must not pass for the primary one
            continue
        name = found.get(f"{PREFIX}.{index}.name")
        given = name.string_value if name is not None else ""
        dimensions.append(Dimension(given or (str(index) if place else PRIMARY), value))
    if dimensions:
        node.reward = tuple(dimensions)
    return bool(values)


def _read_output(node: Node, key: str, found: Attributes, warnings: Warnings) -> bool:
    """Read an AgentOps output that says it is a reward. False if it does not."""
    output: Any = found[key]
    if output.WhichOneof("value") == "string_value":
        written = output.string_value
        if '"reward"' not in written and "'reward'" not in written:
            return False  # some other output: no need to parse it
        try:
            output = read_literal(written)
        except ValueError:
            if written.lstrip().startswith("{"):
                warnings.add(node.where, key, "no JSON")
            return False
    else:
        output = plain(output)
    if not isinstance(output, dict) or output.get("type") != "reward":
        return False
    if output.get("value") is None:
        return True  # of the type, and empty: no reward
    node.holds_reward = True
    node.reward = _checked(node, key, output["value"], warnings)
    return True


def _checked(node: Node, key: str, value: Any, warnings: Warnings) -> Reward | None:
    """Return a reward given as one value: a number, a list of named ones, or the JSON text of either."""
    if isinstance(value, str):
        try:
            value = read_json(value)
        except ValueError:
            value = None
    items = value if isinstance(value, list) and value else [value]
    dimensions: list[Dimension] = []
    for item in items:
        name, amount = PRIMARY, item
        if isinstance(item, dict):
            name, amount = str(item.get("name") or PRIMARY), item.get("value")
        found = number(amount)
        if found is None:
            warnings.add(node.where, key, MALFORMED)
            if not dimensions:
                return None
        else:
            dimensions.append(Dimension(name, found))
    return tuple(dimensions)


# Matching


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
    left.sort(key=lambda node: node.where)
    return given, left


def _by_time(nodes: Sequence[Node], called: set[bytes], given: dict[bytes, Node]) -> Steps[None]:
    """Give each reward to the call begun last among those met that ended before it and have none."""
    running: list[tuple[int, int, bytes]] = []
    ended: list[tuple[int, bytes]] = []
    for at, node in enumerate(sorted(nodes, key=lambda node: node.order)):
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
    order = sorted(
        nodes,
        key=lambda n: (n.sequence_id, n.span_id in called, n.begin, n.span_id),
    )
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
