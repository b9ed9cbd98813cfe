"""A span as the algorithm sees it: names, times, its place in the tree, its reward. Nothing large."""

from __future__ import annotations

from typing import NamedTuple

from lightningstore.service.triplets import payload, rewards
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.values import Attributes, Warnings
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

RESPONSE_IDS = ("gen_ai.response.id", "agentlightning.operation.output.id")
_OPERATION = "agentlightning.operation"
_AGENT_KEYS = (
    "agent.name",
    "agentops.span.kind",
    "operation.name",
    "recipient_agent_type",
    "langchain.chain.type",
    "executor.id",
    "type",
    "agentlightning.operation.input.name",
    "lc_name",
    "gen_ai.agent.name",
)
_WANTED = frozenset((*_AGENT_KEYS, *RESPONSE_IDS, *rewards.KEYS, "agentlightning.operation.name"))
_AGENT_WORDS = frozenset(_AGENT_KEYS)


class Place(NamedTuple):
    """Where a span is stored."""

    row: int
    #: Within the batch of the row.
    at: int


class Node:
    """A span in the tree, or a stand-in for a parent that never came."""

    __slots__ = (
        "agent",
        "begin",
        "children",
        "end",
        "finish",
        "has_tokens",
        "holds_reward",
        "is_call",
        "order",
        "parent_id",
        "place",
        "response_id",
        "reward",
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
        """Take what a span is ordered by. Times are nanoseconds, 0 where they are missing."""
        self.span_id = span_id
        self.parent_id = parent_id
        self.sequence_id = sequence_id
        self.start = start
        self.end = end
        #: The times that it is ordered by: never missing, see `trace.fill_times`.
        self.begin = start
        self.finish = end
        #: Sorts siblings; ends in the span id, so no two are equal.
        self.order: tuple[int, int, bytes] = (start, sequence_id, span_id)
        self.children: list[Node] = []
        self.place: Place | None = None
        self.agent = ""
        self.response_id = ""
        self.reward: rewards.Reward | None = None
        #: Whether it says that it holds a reward, be it readable or not.
        self.holds_reward = False
        #: Whether its name is that of a call.
        self.is_call = False
        #: Whether it has token ids of prompt and response. Looked for only where it decides.
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
        node.place = place
        name = span.name
        if options.proxy:
            node.is_call = name in (payload.RAW_REQUEST, payload.PROXY_REQUEST)
        else:
            node.is_call = options.is_call(name)
        with_tokens = node.is_call and (options.proxy or options.skip_without_tokens)
        found: Attributes = payload.attributes(span) if with_tokens else _wanted(span)
        if found:
            node._read(name, found, warnings)
        if with_tokens:
            node._look_for_tokens(name, found, options, warnings)
        return node

    def _look_for_tokens(
        self, name: str, found: Attributes, options: Options, warnings: Warnings
    ) -> None:
        def warn(key: str, message: str) -> None:
            warnings.add(self.where, key, message)

        if options.proxy:
            prompt, response = payload.proxy_tokens(name, found, warn)
            self.response_id = ""
            for key in payload.PROXY_RESPONSE_IDS:
                self.response_id = self.response_id or text(found, key)
        else:
            prompt, response = payload.tracer_tokens(found, warn)
        self.has_tokens = bool(prompt and response)

    def _read(self, name: str, found: Attributes, warnings: Warnings) -> None:
        if not _AGENT_WORDS.isdisjoint(found):
            self.agent = _agent_name(name, found)
        for key in RESPONSE_IDS:
            self.response_id = self.response_id or text(found, key)
        rewards.read(self, name, found, warnings)
        if name == _OPERATION and text(found, "agentlightning.operation.name") == rewards.PREFIX:
            self.holds_reward = True

    @property
    def where(self) -> tuple[int, bytes]:
        """Its sequence id and span id."""
        return self.sequence_id, self.span_id


def _wanted(span: Span) -> dict[str, AnyValue]:
    """Return the attributes that a node is made of."""
    found: dict[str, AnyValue] = {}
    for pair in span.attributes:
        key = pair.key
        if key in _WANTED or key.startswith(rewards.PREFIX):
            found[key] = pair.value
    return found


def text(found: Attributes, key: str) -> str:
    """Return the text of an attribute, empty if there is none."""
    value = found.get(key)
    return "" if value is None else value.string_value


def _agent_name(name: str, found: Attributes) -> str:
    """Return the name of the agent that a span is, empty if it is none: the first hit of many customs."""
    if given := text(found, "agent.name"):
        return given
    if text(found, "agentops.span.kind") == "agent" and (given := text(found, "operation.name")):
        return given
    for key in ("recipient_agent_type", "langchain.chain.type", "executor.id"):
        if given := text(found, key):
            return given
    if text(found, "type") == "agent" and (
        given := text(found, "agentlightning.operation.input.name")
    ):
        return given
    if name.startswith("langchain.Chain.") and (given := text(found, "lc_name")):
        return given
    return text(found, "gen_ai.agent.name")
