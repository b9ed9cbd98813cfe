"""The calls of a model in a trace. Several spans may record the same call: it counts once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lightningstore.service.triplets.kinds import Kind
from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.steps import SLICE, Steps

#: Spans of one call that are read.
MAX_RECORDS = 4
#: Name of the agent outside of any.
ANY_AGENT = "*"


class _Likely(str):
    """Name of an agent that only a span's name tells of: any other name above it counts more."""

    __slots__ = ()


@dataclass(slots=True, eq=False)
class Found:
    """A call, and the spans that record it, the first from above first."""

    node: Node
    agent: str
    #: The first few.
    others: tuple[Node, ...] = ()
    #: Calls right below this one that have a response id of their own, the first two.
    inner: tuple[Found, ...] = ()
    is_dropped: bool = False
    #: Whether one of the spans has token ids of prompt and response.
    has_tokens: bool = False

    @property
    def response_id(self) -> str:
        """The id of the first span that has one."""
        if self.node.response_id or not self.others:
            return self.node.response_id
        return next((node.response_id for node in self.others if node.response_id), "")

    def add(self, node: Node) -> None:
        """Add a span that records this call too."""
        if len(self.others) < MAX_RECORDS - 1:
            self.others += (node,)
        self.has_tokens |= node.has_tokens


def of_proxy(nodes: Iterable[Node], options: Options) -> list[Found]:
    """Return the calls of a proxy that have token ids, one a response id. `nodes`: by sequence id."""
    seen: set[str] = set()
    calls: list[Found] = []
    for node in nodes:
        if not node.is_call or not node.has_tokens:
            continue
        if options.deduplicate and node.response_id:
            if node.response_id in seen:
                continue
            seen.add(node.response_id)
        calls.append(Found(node, "", has_tokens=True))
    return calls


def of_tree(root: Node, options: Options) -> Steps[list[Found]]:
    """Return the calls of a tree from above, each with the agent that it is under."""
    calls = yield from _search(root, options)
    if options.deduplicate:
        for call in reversed(calls):
            _settle(call)
    return [
        call
        for call in calls
        if not call.is_dropped and (call.has_tokens or not options.skip_without_tokens)
    ]


def _search(root: Node, options: Options) -> Steps[list[Found]]:
    """Return all calls that count, before those that are one are joined."""
    seen: dict[str, Found] = {}
    calls: list[Found] = []
    everywhere = ANY_AGENT if options.is_agent is None else ""
    # A node, the agent that it is under, whether it lies under a reward, and the call that it lies under.
    left: list[tuple[Node, str, bool, Found | None]] = [(root, everywhere, False, None)]
    count = 0
    while left:
        node, agent, in_reward, above = left.pop()
        count += 1
        if count % SLICE == 0:
            yield
        if above is not None and _is_apart(node, above.node):
            above = None
        name = _agent_of(node, agent, options)
        if node.is_call and name and not in_reward:
            above = _place(
                Found(node, name, has_tokens=node.has_tokens), above, seen, calls, options
            )
        if node.agent:
            named = options.is_agent is None or options.is_agent(node.agent)
            agent = node.agent if named else ""
        elif node.likely_agent and (agent == ANY_AGENT or type(agent) is _Likely):
            agent = _Likely(node.likely_agent)
        if node.holds_reward and options.exclude_calls_under_rewards:
            in_reward = True
        left.extend((child, agent, in_reward, above) for child in reversed(node.children))
    return calls


def _place(
    found: Found, above: Found | None, seen: dict[str, Found], calls: list[Found], options: Options
) -> Found:
    """Add a call, or the span to the call that it records too. Returns the call that those below lie under."""
    response_id = found.node.response_id
    if options.deduplicate:
        if response_id and response_id in seen:
            seen[response_id].add(found.node)
            return seen[response_id]
        if not response_id and above is not None:
            above.add(found.node)
            return above
        if above is not None and len(above.inner) < 2:
            above.inner += (found,)
    if response_id:
        seen[response_id] = found
    calls.append(found)
    return found


def _agent_of(call: Node, agent: str, options: Options) -> str:
    """Return the agent that a call is under: the one that it names itself, or the nearest above."""
    named = call.own_agent
    is_named = agent != ANY_AGENT and type(agent) is not _Likely
    if not named and options.is_agent is None and call.is_call and not is_named:
        named = call.agent
    if not named:
        return agent
    return named if options.is_agent is None or options.is_agent(named) else ""


def _is_apart(node: Node, call: Node) -> bool:
    """Tell whether a span below a call is work of its own, and not another record of that call.

    What a tool or an agent does is. So is a call that was only put below because it is shorter: calls may run at the
    same time. A proxy's record of the call has no other way to get there.
    """
    if node.kind in (Kind.TOOL, Kind.AGENT):
        return True
    return node.moved and node.is_call and node.proxied == call.proxied


def _settle(call: Found) -> None:
    """Join a call without a response id with the one below it; of several below, it is only what made them."""
    if call.response_id or not call.inner:
        return
    first = call.inner[0]
    if len(call.inner) > 1 or first.is_dropped:
        call.is_dropped = True
        return
    for node in (first.node, *first.others):
        call.add(node)
    first.is_dropped = True
