"""A span as the algorithm sees it: names, times, its place in the tree, its reward. Nothing large.

A node holds few objects: garbage collection looks at all those of a trace at once, and holds the event loop meanwhile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from lightningstore.service.triplets import rewards, tokens
from lightningstore.service.triplets.kinds import (
    GEN_AI_AGENT,
    OPERATION,
    Kind,
    Mark,
    agent_name,
    kind_of,
    looks_like_agent,
    mark_of,
    text,
)
from lightningstore.service.triplets.layouts import layouts_of
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.values import Attributes, attributes_of
from lightningstore.service.triplets.warnings import Warnings
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

RESPONSE_IDS = ("gen_ai.response.id", f"{OPERATION}.output.id")
#: The id at the start of an answer that is JSON.
_ANSWER_ID = re.compile(r'\s*\{\s*"id"\s*:\s*"([^"\\]{1,256})"')


class Place(NamedTuple):
    """Where a span is stored."""

    row: int
    #: Within the batch of the row.
    at: int


class Node:
    """A span in the tree, or a stand-in for a parent that never came."""

    __slots__ = (
        "agent",
        "at",
        "begin",
        "children",
        "end",
        "finish",
        "has_tokens",
        "holds_reward",
        "is_call",
        "kind",
        "likely_agent",
        "moved",
        "own_agent",
        "parent_id",
        "proxied",
        "response_id",
        "reward",
        "row",
        "sequence_id",
        "span_id",
        "start",
    )

    def __init__(
        self,
        span_id: bytes,
        parent_id: bytes = b"",
        sequence_id: int = 0,
        start: int = 0,
        end: int = 0,
    ) -> None:
        """Times are nanoseconds, 0 where they are missing."""
        self.span_id = span_id
        self.parent_id = parent_id
        self.sequence_id = sequence_id
        self.start = start
        self.end = end
        #: The times that it is ordered by: never missing, see `tree.fill_times`.
        self.begin = start
        self.finish = end
        #: Changed by `add` and `remove`; most spans have none.
        self.children: Sequence[Node] = ()
        #: Whether it was put under a span that is not its parent, because that encloses it in time.
        self.moved = False
        #: Where the span is stored: see `Place`. A stand-in has negative numbers.
        self.row = self.at = -1
        self.kind = Kind.UNKNOWN
        #: Name of the agent that the spans below it belong to.
        self.agent = ""
        #: Name of a span that looks like an agent's, though no attribute says so.
        self.likely_agent = ""
        #: Name of the agent that makes this call, by the call's own attributes.
        self.own_agent = ""
        self.response_id = ""
        self.reward: rewards.Reward | None = None
        #: Whether it is marked as a reward, be it readable or not.
        self.holds_reward = False
        self.is_call = False
        #: Whether it is a proxy's record of a call.
        self.proxied = False
        #: Whether it has token ids of prompt and response. Read only where it decides.
        self.has_tokens = False

    @classmethod
    def of(
        cls, span: Span, sequence_id: int, place: Place, options: Options, warnings: Warnings
    ) -> Node:
        """Read a span."""
        node = cls(
            span.span_id,
            span.parent_span_id,
            sequence_id,
            span.start_time_unix_nano,
            span.end_time_unix_nano,
        )
        node.row, node.at = place
        name = span.name
        attributes = attributes_of(span)
        found, marks = _wanted(attributes)
        if marks & Mark.TELLING or span.events:
            node.kind = kind_of(marks, found, span)
        node.proxied = name in tokens.PROXY_SPANS
        if options.proxy:
            node.is_call = node.proxied
        elif options.by_attributes and node.kind is not Kind.UNKNOWN:
            node.is_call = node.kind is Kind.CALL
        else:
            node.is_call = options.is_call(name)
        if found:
            node._read(name, found, marks, warnings)
        if node.kind is Kind.UNKNOWN and not node.is_call and looks_like_agent(name):
            node.likely_agent = name
        if node.is_call:
            warnings.calls += 1
            if options.proxy or options.skip_without_tokens:
                node._look_for_tokens(name, span, options, warnings)
        elif not warnings.calls:
            warnings.note(name, attributes)
        return node

    def _look_for_tokens(self, name: str, span: Span, options: Options, warnings: Warnings) -> None:
        def warn(key: str, message: str) -> None:
            warnings.add(self.where, key, message)

        found = attributes_of(span)
        places = layouts_of(found).tokens
        if options.proxy:
            prompt, response = tokens.of_proxy(name, found, places, warn)
        else:
            prompt, response = tokens.of_call(found, places, warn)
        self.has_tokens = bool(prompt and response)

    def _read(self, name: str, found: Attributes, marks: int, warnings: Warnings) -> None:
        if marks & Mark.AGENT or self.kind is Kind.AGENT:
            self.agent = agent_name(name, found, self.kind)
            if self.is_call:
                self.own_agent = text(found, GEN_AI_AGENT)
        if marks & (Mark.RESPONSE_ID | Mark.ANSWER):
            self.response_id = _response_id(found) if self.is_call else ""
        if marks & Mark.REWARD:
            reading = rewards.read(name, found)
            self.holds_reward = reading.is_marked
            self.reward = reading.dimensions or None
            for key, fault in reading.faults:
                warnings.add(self.where, key, fault)
        if name == OPERATION and text(found, f"{OPERATION}.name") == rewards.MARK:
            self.holds_reward = True

    def add(self, child: Node) -> None:
        """Add a child after the others."""
        if self.children:
            self.children.append(child)  # type: ignore[attr-defined]
        else:
            self.children = [child]

    def remove(self, child: Node) -> None:
        """Remove a child."""
        self.children = [other for other in self.children if other is not child]

    @property
    def order(self) -> tuple[int, int, bytes]:
        """Sorts siblings; ends in the span id, so no two are equal."""
        return self.begin, self.sequence_id, self.span_id

    @property
    def where(self) -> tuple[int, bytes]:
        """Its sequence id and span id."""
        return self.sequence_id, self.span_id


def _wanted(attributes: Attributes) -> tuple[dict[str, AnyValue], int]:
    """Return the attributes that a node is made of, and the marks of all keys."""
    found: dict[str, AnyValue] = {}
    marks = 0
    for key in attributes:
        mark = mark_of(key)
        if mark:
            marks |= mark
            if mark & Mark.WANTED:
                found[key] = attributes[key]
    return found, marks


def _response_id(found: Attributes) -> str:
    """Return the id that the model's server gave the answer, empty if it is not known."""
    for key in RESPONSE_IDS:
        if named := text(found, key):
            return named
    for key, value in found.items():
        mark = mark_of(key)
        if mark & Mark.RESPONSE_ID and value.string_value:
            return value.string_value
        if mark & Mark.ANSWER and (answer := _ANSWER_ID.match(value.string_value)):
            return answer[1]
    return ""
