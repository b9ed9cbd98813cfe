"""From the spans of an attempt to its calls and their rewards, and from a call to its triplet."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lightningstore.service.triplets import payload, rewards
from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.steps import SLICE, Steps
from lightningstore.service.triplets.tree import grow, preorder, repair
from lightningstore.service.triplets.values import Warnings
from lightningstore.v1.triplet_pb2 import Triplet
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Name of the agent outside of any.
ANY_AGENT = "*"


class Call(NamedTuple):
    """A call of a model that becomes a triplet."""

    node: Node
    agent: str
    #: The span with its reward.
    rewarded_by: Node | None


class Trace(NamedTuple):
    """What a trace holds."""

    calls: list[Call]
    #: Spans whose rewards found no call, by sequence id.
    unmatched: list[Node]


def find_calls(nodes: Iterable[Node], options: Options) -> Steps[Trace]:
    """Return the calls in the order of their triplets. The order of `nodes` does not matter."""
    ordered = sorted(nodes, key=lambda n: (n.sequence_id, n.start, n.span_id, n.end, n.parent_id))
    yield
    if options.proxy:
        found = [(node, "") for node in _proxy_calls(ordered, options)]
    else:
        root = yield from grow(ordered)
        if root is None:
            return Trace([], [])
        if options.repair_hierarchy:
            yield from repair(root)
        found = yield from _search(root, options)
        ordered = preorder(root)
    chosen = [node for node, _ in found]
    given, unmatched = yield from rewards.match(options.reward_policy, ordered, chosen)
    return Trace([Call(node, agent, given.get(node.span_id)) for node, agent in found], unmatched)


def _proxy_calls(nodes: list[Node], options: Options) -> list[Node]:
    """Return the calls with token ids, the first of each response id."""
    seen: set[str] = set()
    calls: list[Node] = []
    for node in nodes:
        if not node.is_call or not node.has_tokens:
            continue
        if options.deduplicate and node.response_id:
            if node.response_id in seen:
                continue
            seen.add(node.response_id)
        calls.append(node)
    return calls


def _search(root: Node, options: Options) -> Steps[list[tuple[Node, str]]]:
    """Return the calls of a tree from above, each with the agent that it is under."""
    seen: set[str] = set()
    calls: list[tuple[Node, str]] = []
    everywhere = ANY_AGENT if options.is_agent is None else ""
    # A node, the agent that it is under, and whether it lies under a reward or under another call.
    left: list[tuple[Node, str, bool, bool]] = [(root, everywhere, False, False)]
    count = 0
    while left:
        node, agent, in_reward, in_call = left.pop()
        count += 1
        if count % SLICE == 0:
            yield
        if node.is_call and agent and not in_reward:
            known = node.response_id in seen if node.response_id else in_call
            if not (options.deduplicate and known):
                seen.add(node.response_id)
                in_call = True
                if node.has_tokens or not options.skip_without_tokens:
                    calls.append((node, agent))
        if node.agent:
            named = options.is_agent is None or options.is_agent(node.agent)
            agent = node.agent if named else ""
        if node.holds_reward and options.exclude_calls_under_rewards:
            in_reward = True
        left.extend((child, agent, in_reward, in_call) for child in reversed(node.children))
    return calls


def triplet_of(call: Call, span: Span, options: Options, warnings: Warnings) -> Triplet:
    """Return the triplet of a call, out of its span."""
    node = call.node
    triplet = Triplet(
        response_id=node.response_id,
        agent_name=call.agent,
        span_id=node.span_id.hex(),
        sequence_id=node.sequence_id,
    )
    found = payload.attributes(span)

    def warn(key: str, message: str) -> None:
        warnings.add(node.where, key, message)

    triplet.prompt.SetInParent()
    triplet.response.SetInParent()
    if options.proxy:
        prompt, response = payload.proxy_tokens(span.name, found, payload.nobody)
    else:
        told = payload.nobody if options.skip_without_tokens else warn
        prompt, response = payload.tracer_tokens(found, told)
        payload.fill(triplet, found, warn)
    payload.put_tokens(triplet, prompt, response)
    if call.rewarded_by is not None:
        triplet.reward.CopyFrom(rewards.message(call.rewarded_by))
    return triplet
