"""What a span is: a call of a model, an agent, a tool or something else, by its attributes.

Instrumentations agree on the form of what they write, not on its names. Two rules cover them:

1. A key such as `gen_ai.operation.name`, `openinference.span.kind` or `mlflow.spanType` says what a span is. Its last
   two words tell such a key from others; its value is looked up among the words for calls, agents and tools.
2. Where no such key decides, a span that holds a prompt and an answer, or a model and what it used, is a call.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache
from typing import Any

from lightningstore.service.triplets import rewards
from lightningstore.service.triplets.values import Attributes
from opentelemetry.proto.trace.v1.trace_pb2 import Span

OPERATION = "agentlightning.operation"
GEN_AI_AGENT = "gen_ai.agent.name"
#: Keys that may name an agent, or that decide whether another one does.
_AGENT_KEYS = frozenset(
    {
        "agent.name",
        "agentops.span.kind",
        "operation.name",
        "recipient_agent_type",
        "langchain.chain.type",
        "executor.id",
        "type",
        f"{OPERATION}.input.name",
        "lc_name",
        "graph.node.id",
        "traceloop.entity.name",
        GEN_AI_AGENT,
    }
)
_RESPONSE_IDS = frozenset({"gen_ai.response.id", f"{OPERATION}.output.id"})
#: Attributes that hold the answer of a model's server whole, so that its id comes first in the text.
WHOLE_ANSWERS = frozenset({"output.value"})
#: Last two words of a key that says what a span is.
_KIND_WORDS = frozenset(
    {
        ("operation", "name"),
        ("operation", "id"),
        ("operation", "type"),
        ("span", "kind"),
        ("span", "type"),
        ("span", "attributes"),
        ("observation", "type"),
        ("run", "type"),
        ("request", "type"),
        ("step", "type"),
        ("node", "type"),
        ("entity", "type"),
        ("metadata", "subtype"),
    }
)
_CALL_WORDS = frozenset(
    {
        "acompletion",
        "ai_client",
        "chat",
        "chat_completion",
        "chat_completions",
        "chat_model",
        "completion",
        "completions",
        "converse",
        "dogenerate",
        "dostream",
        "generate",
        "generate_content",
        "generation",
        "inference",
        "llm",
        "llm_call",
        "llm_request",
        "messages",
        "model",
        "model_call",
        "model_request",
        "responses",
        "text_completion",
        "text_generation",
    }
)
_AGENT_WORDS = frozenset({"agent", "agent_run", "create_agent", "invoke_agent", "run_agent"})
_TOOL_WORDS = frozenset(
    {"execute_tool", "mcp_tool", "tool", "tool_call", "toolcall", "tool_execution"}
)
_OTHER_WORDS = frozenset(
    {
        "chain",
        "embed",
        "embedding",
        "embeddings",
        "evaluator",
        "generateobject",
        "generatetext",
        "guardrail",
        "invoke_workflow",
        "parser",
        "prompt",
        "rerank",
        "reranker",
        "retrieval",
        "retriever",
        "reward",
        "session",
        "streamobject",
        "streamtext",
        "task",
        "workflow",
    }
)
_NUMBER = re.compile(r"[0-9]+")
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
#: Keys whose meaning is remembered, and the longest of them.
_REMEMBERED, _REMEMBERED_LENGTH = 4096, 200


class Mark:
    """What a key means to the algorithm. Plain integers, since every key of every span is looked at."""

    NOTHING = 0
    #: Says what the span is.
    KIND = 1
    AGENT = 2
    REWARD = 4
    RESPONSE_ID = 8
    #: Holds the answer whole, with its id.
    ANSWER = 16
    PROMPT = 32
    RESPONSE = 64
    MODEL = 128
    USAGE = 256
    TOOL = 512
    #: Its value is needed to make a node.
    WANTED = KIND | AGENT | REWARD | RESPONSE_ID | ANSWER
    #: It may tell what the span is.
    TELLING = KIND | TOOL | PROMPT | RESPONSE | MODEL


class Kind(IntEnum):
    """What a span is."""

    UNKNOWN = 0
    CALL = 1
    AGENT = 2
    TOOL = 3
    OTHER = 4


_known: dict[str, int] = {}


def mark_of(key: str) -> int:
    """Return the `Mark` of a key."""
    mark = _known.get(key)
    if mark is None:
        is_short = len(key) <= _REMEMBERED_LENGTH
        # Keys that differ in their numbers only mean the same: messages have one.
        mark = (_mark_of if is_short else _mark_of.__wrapped__)(_NUMBER.sub("0", key))
        if len(_known) >= _REMEMBERED:
            # Keys that are in use come back at once; those of a span with thousands of its own do not.
            _known.clear()
        if is_short:
            _known[key] = mark
    return mark


def words_of(key: str, limit: int = _REMEMBERED_LENGTH) -> list[str]:
    """Return the words of a key in lower case: `mlflow.spanType` is mlflow, span, type."""
    return [word.lower() for word in _WORDS.findall(key[-limit:])]


@lru_cache(_REMEMBERED)
def _mark_of(key: str) -> int:
    mark = Mark.NOTHING
    if key in _AGENT_KEYS:
        mark |= Mark.AGENT
    if rewards.may_tell(key):
        mark |= Mark.REWARD
    if key in WHOLE_ANSWERS:
        mark |= Mark.ANSWER
    words = words_of(key)
    tail = tuple(words[-2:])
    # A bare operation.name or type is anybody's.
    if len(words) > 2 and tail in _KIND_WORDS:
        mark |= Mark.KIND
    if key in _RESPONSE_IDS or tail == ("response", "id") or provider_of(key, "id"):
        mark |= Mark.RESPONSE_ID
    if key in ("tool.name", "gen_ai.tool.name", "gen_ai.tool.call.id"):
        mark |= Mark.TOOL
    return mark | _evidence(key, words)


#: Where a prompt or an answer of a model is written, and nothing else.
_PROMPT_PLACES = (
    "gen_ai.prompt",
    "gen_ai.input.messages",
    "llm.input_messages",
    "llm.prompts",
    "ai.prompt.messages",
    f"{OPERATION}.input.messages",
    "prompt_token_ids",
)
_RESPONSE_PLACES = (
    "gen_ai.completion",
    "gen_ai.output.messages",
    "llm.output_messages",
    "llm.completions",
    "ai.response.text",
    "ai.response.toolCalls",
    "ai.response.object",
    f"{OPERATION}.output.choices",
    "response_token_ids",
)
_PROMPT_FIELDS = ("messages", "prompt_token_ids")
_RESPONSE_FIELDS = ("choices", "response_token_ids")


def _evidence(key: str, words: list[str]) -> int:
    """Return what a key tells of a call of a model."""
    if _is_at(key, _PROMPT_PLACES) or any(provider_of(key, last) for last in _PROMPT_FIELDS):
        return Mark.PROMPT
    if _is_at(key, _RESPONSE_PLACES) or any(provider_of(key, last) for last in _RESPONSE_FIELDS):
        return Mark.RESPONSE
    if not {"ai", "llm", "model"} & set(words):
        return Mark.NOTHING
    if words[-2:] in (["request", "model"], ["model", "name"], ["model", "id"]):
        return Mark.MODEL
    if "tokens" in words or ["token", "count"] in (words[-3:-1], words[-2:]):
        return Mark.USAGE
    return Mark.NOTHING


def _is_at(key: str, places: tuple[str, ...]) -> bool:
    return any(
        key.startswith(place) and (len(key) == len(place) or key[len(place)] == ".")
        for place in places
    )


def provider_of(key: str, last: str) -> str:
    """Return PROVIDER of a key `llm.PROVIDER.last`, which a proxy writes; empty for any other key."""
    if not key.startswith("llm.") or not key.endswith(f".{last}"):
        return ""
    provider = key[4 : -len(last) - 1]
    return "" if "." in provider or provider in ("request", "response") else provider


def kind_of(marks: int, found: Attributes, span: Span) -> Kind:
    """Return what a span is. `marks`: of all its keys. `found`: those of its attributes that are WANTED."""
    if marks & Mark.KIND:
        kind = _named_kind(found)
        if kind is not Kind.UNKNOWN:
            return kind
    if marks & Mark.TOOL:
        return Kind.TOOL
    if marks & Mark.PROMPT and marks & Mark.RESPONSE:
        return Kind.CALL
    if marks & Mark.MODEL and marks & (Mark.RESPONSE_ID | Mark.RESPONSE | Mark.USAGE):
        return Kind.CALL
    if span.events and any(event.name == "gen_ai.choice" for event in span.events):
        return Kind.CALL
    return Kind.UNKNOWN


def _named_kind(found: Attributes) -> Kind:
    """Return what the attributes say that a span is: agents and tools may speak of their model too."""
    kinds = {
        word_kind(value.string_value) for key, value in found.items() if mark_of(key) & Mark.KIND
    }
    for kind in (Kind.AGENT, Kind.TOOL, Kind.CALL, Kind.OTHER):
        if kind in kinds:
            return kind
    return Kind.UNKNOWN


def word_kind(value: str) -> Kind:
    """Return what a word says that a span is: `chat`, "LLM", `ai.generateText.doGenerate`, {"type": "llm"}."""
    if value[:1] == "{":
        typed = _TYPE.search(value[:1024])
        value = typed[1] if typed else ""
    word = value[-64:].strip("\"' ").lower().rpartition(".")[2].replace("-", "_").replace(" ", "_")
    if word in _CALL_WORDS:
        return Kind.CALL
    if word in _AGENT_WORDS:
        return Kind.AGENT
    if word in _TOOL_WORDS:
        return Kind.TOOL
    return Kind.OTHER if word in _OTHER_WORDS else Kind.UNKNOWN


_TYPE = re.compile(r'"type"\s*:\s*"([^"]*)"')
_LIKELY_AGENT = re.compile(r"[^\W_].*[\s_.-]agent", re.IGNORECASE)
_AGENT_PREFIXES = ("invoke_agent ", "agent ", "Agent ")
_AGENT_SUFFIXES = (".agent", " agent", " run")


def agent_name(name: str, found: Attributes, kind: Kind) -> str:
    """Return the name of the agent that a span is, empty if it is none: the first hit of many customs."""
    if named := text(found, "agent.name"):
        return named
    if text(found, "agentops.span.kind") == "agent" and (named := text(found, "operation.name")):
        return named
    for key in ("recipient_agent_type", "langchain.chain.type", "executor.id"):
        if named := text(found, key):
            return named
    if text(found, "type") == "agent" and (named := text(found, f"{OPERATION}.input.name")):
        return named
    if name.startswith("langchain.Chain.") and (named := text(found, "lc_name")):
        return named
    if named := text(found, GEN_AI_AGENT):
        return named
    return _agent_by_kind(name, found) if kind is Kind.AGENT else ""


def _agent_by_kind(name: str, found: Attributes) -> str:
    """Return the name of a span that is known to be an agent, but has no attribute for its name."""
    for key in ("graph.node.id", "traceloop.entity.name"):
        if named := text(found, key):
            return named
    for prefix in _AGENT_PREFIXES:
        name = name.removeprefix(prefix)
    for suffix in _AGENT_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def looks_like_agent(name: str) -> bool:
    """Tell whether a span's name is that of an agent, as of weather_agent: the last hint, where no other is."""
    return name[-5:].lower() == "agent" and _LIKELY_AGENT.fullmatch(name) is not None


def text(found: Attributes, key: str) -> str:
    """Return the text of an attribute, empty if there is none."""
    value: Any = found.get(key)
    return "" if value is None else str(value.string_value)
