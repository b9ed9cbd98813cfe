"""From the spans of an attempt to its calls and their rewards, and from a call to its triplet."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lightningstore.service.triplets import calls, contents, rewards
from lightningstore.service.triplets.kinds import Kind
from lightningstore.service.triplets.matching import match
from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.steps import Steps, sort
from lightningstore.service.triplets.tree import grow, preorder, repair
from lightningstore.service.triplets.values import ignore
from lightningstore.service.triplets.warnings import Warnings
from lightningstore.v1.triplet_pb2 import Triplet
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Spans of one call's tools that are read.
_MAX_TOOLS = 16


class Call(NamedTuple):
    """A call of a model that becomes a triplet."""

    #: The spans that record it, the first from above first.
    records: tuple[Node, ...]
    #: Spans of tools right below them.
    tools: tuple[Node, ...]
    agent: str
    response_id: str
    #: The span with its reward.
    rewarded_by: Node | None
    #: The first span of the next call under the same agent; its prompt may repeat the answer to this one.
    following: Node | None

    @property
    def node(self) -> Node:
        """The first of its spans."""
        return self.records[0]


class Trace(NamedTuple):
    """What a trace holds."""

    calls: list[Call]
    #: Spans whose rewards found no call, by sequence id.
    unmatched: list[Node]


def find_calls(nodes: Iterable[Node], options: Options, warnings: Warnings) -> Steps[Trace]:
    """Return the calls in the order of their triplets. The order of `nodes` does not matter."""
    ordered = sort(nodes, key=lambda n: (n.sequence_id, n.start, n.span_id, n.end, n.parent_id))
    yield
    if options.proxy:
        found = calls.of_proxy(ordered, options)
    else:
        root = yield from grow(ordered)
        if root is None:
            return Trace([], [])
        if options.repair_hierarchy:
            yield from repair(root)
        found = yield from calls.of_tree(root, options)
        ordered = preorder(root)
    if not found and ordered:
        warnings.add((0, b""), "", _why_none(warnings))
    chosen = [call.node for call in found]
    given, unmatched = yield from match(options.reward_policy, ordered, chosen)
    made: list[Call] = []
    following: dict[str, Node] = {}
    for call in reversed(found):
        made.append(_call(call, given.get(call.node.span_id), following.get(call.agent)))
        following[call.agent] = call.node
    made.reverse()
    return Trace(made, unmatched)


def _why_none(warnings: Warnings) -> str:
    if warnings.calls:
        return (
            f"none of the {warnings.calls} calls of a model counts: check agent_match and skip_without_tokens, "
            "and whether they lie under a reward"
        )
    return f"no span is known as a call of a model; {warnings.describe()}"


def _call(found: calls.Found, rewarded_by: Node | None, following: Node | None) -> Call:
    node = found.node
    records: tuple[Node, ...] = (node,)
    if found.others:
        records = (node, *found.others)
    tools: tuple[Node, ...] = ()
    if any(record.children for record in records):
        tools = tuple(_tools_below(records))[:_MAX_TOOLS]
    following = None if node.proxied else following
    return Call(records, tools, found.agent, found.response_id, rewarded_by, following)


def _tools_below(records: Iterable[Node]) -> Iterator[Node]:
    for record in records:
        for child in record.children:
            if child.kind is Kind.TOOL and not child.moved:
                yield child


def triplet_of(
    call: Call, spans: Sequence[Span], tools: Sequence[Span], options: Options, warnings: Warnings
) -> Triplet:
    """Return the triplet of a call. `spans` and `tools`: those of its nodes, in their order."""
    node = call.node
    triplet = Triplet(
        response_id=call.response_id,
        agent_name=call.agent,
        span_id=node.span_id.hex(),
        sequence_id=node.sequence_id,
    )

    def warn(key: str, message: str) -> None:
        warnings.add(node.where, key, message)

    triplet.prompt.SetInParent()
    triplet.response.SetInParent()
    if options.proxy:
        contents.fill_from_proxy(triplet, spans[0], warn)
    else:
        # With this option the token ids were read, and warned of, when the call was found.
        warn_of_tokens = ignore if options.skip_without_tokens else warn
        contents.fill(triplet, spans, tools, warn, warn_of_tokens)
    if (by := call.rewarded_by) is not None and by.reward is not None:
        triplet.reward.CopyFrom(rewards.message(by.reward, by.span_id, by.sequence_id))
    return triplet


def lacks_answer(call: Call, triplet: Triplet) -> bool:
    """Tell whether the spans of a call have no answer, and the next call may repeat it in its prompt."""
    return call.following is not None and not triplet.response.content_json


def add_answer(triplet: Triplet, following: Span) -> None:
    """Take the answer from the prompt of the next call, if that begins with this one's and goes on with an answer."""
    answer = contents.answer_within(triplet.prompt.content_json, following)
    if answer is not None:
        triplet.response.content_json = answer
