"""Where the span of a call holds prompt, answer and the rest: its keys alone decide.

Each content has a list of places, of which the first with something in it counts. Spans of one kind have the same keys,
so a layout is made once and remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from lightningstore.service.triplets import endings, events, usage
from lightningstore.service.triplets.endings import EndingPlaces
from lightningstore.service.triplets.kinds import OPERATION, provider_of, words_of
from lightningstore.service.triplets.tokens import ANSWERS, TokenPlaces, places_of
from lightningstore.service.triplets.unflatten import unflatten
from lightningstore.service.triplets.usage import UsagePlaces
from lightningstore.service.triplets.values import Attributes

_INPUT = f"{OPERATION}.input"
_OUTPUT = f"{OPERATION}.output"
#: Characters of a span's keys above which their layout is not kept.
_KEPT_TEXT = 4096
#: In place of the parts of a layout: the texts in it are parsed, where they are JSON.
PARSED = ("*",)
#: Maps of OpenInference that hold one thing only, and say what it is.
_WRAPPERS = frozenset(
    {"message", "message_content", "tool_call", "tool", "json_schema", "prompt", "completion"}
)


class Layout(NamedTuple):
    """Where one place of a content is."""

    #: The one attribute that has all of it, empty where it is spread over several.
    whole: str
    #: Maps and lists, with the keys of attributes where their values belong.
    shape: Any = None
    #: Keys that found no place.
    refused: tuple[str, ...] = ()
    #: Parts of the value of which the first counts, where it is an object with others.
    parts: tuple[str, ...] = ()


class Layouts(NamedTuple):
    """Where a span holds its contents, for each the places from the first on."""

    system: tuple[Layout, ...]
    prompt: tuple[Layout, ...]
    tools: tuple[Layout, ...]
    response: tuple[Layout, ...]
    request_metadata: tuple[Layout, ...]
    response_metadata: tuple[Layout, ...]
    #: Attributes that may hold an answer whole, log-probabilities too.
    answers: tuple[str, ...]
    tokens: TokenPlaces
    usage: UsagePlaces
    ending: EndingPlaces
    #: Whether an attribute holds a list of events.
    has_events: bool


class _Place(NamedTuple):
    """Where a content may be written."""

    prefix: str
    #: The only part of it that counts, if there is one.
    only: str = ""
    #: The parts of it that go elsewhere.
    without: tuple[str, ...] = ()
    #: Parts of the value of which the first counts, where it is an object with others.
    parts: tuple[str, ...] = ()


#: What follows a prefix in the keys, and the keys.
_Groups = dict[str, list[tuple[str, str]]]
_ASKED = ("messages", "input", "contents", "prompt")
_ANSWERED = ("choices", "generations", "output", "message", "messages", "content")
TOOLS = ("tools", "function_tools", "functions")

_SYSTEMS = (
    _Place("gen_ai.system_instructions"),
    _Place("gen_ai.request", "instructions"),
    _Place("ai.prompt", "system"),
    _Place("system_prompt"),
    _Place("system_instructions"),
)
_PROMPTS = (
    _Place("gen_ai.prompt", parts=_ASKED),
    _Place(_INPUT, "messages"),
    _Place("gen_ai.input", "messages"),
    _Place("llm.input_messages"),
    _Place("ai.prompt", "messages"),
    _Place("llm.prompts"),
    _Place("input.value", parts=_ASKED),
    _Place("ai.prompt", parts=_ASKED),
)
_RESPONSES = (
    _Place("gen_ai.completion", parts=_ANSWERED),
    _Place(_OUTPUT, "choices"),
    _Place("gen_ai.output", "messages"),
    _Place("llm.output_messages"),
    _Place("llm.completions"),
    _Place("output.value", parts=_ANSWERED),
)
_TOOL_PLACES = (
    _Place("gen_ai.tool", "definitions"),
    _Place("llm.tools"),
    _Place("ai.prompt", "tools"),
    _Place("llm.request", "functions"),
    _Place("gen_ai.request", "functions"),
    _Place("gen_ai.request", "tools"),
    _Place(_INPUT, "tools"),
    _Place("model_request_parameters", parts=TOOLS),
    _Place("llm.invocation_parameters", parts=TOOLS),
    _Place("input.value", parts=TOOLS),
)
_REQUESTS = (
    _Place("gen_ai.request"),
    _Place(_INPUT, without=("messages",)),
    _Place("llm.invocation_parameters"),
    _Place("ai.settings"),
)
_METADATA = (
    _Place("gen_ai.response"),
    _Place(_OUTPUT, without=("choices", "prompt_token_ids", "response_token_ids")),
)
#: The Vercel AI SDK spreads an answer over attributes: their last words, and what they are in a message.
_VERCEL = {
    "text": "content",
    "toolCalls": "tool_calls",
    "object": "object",
    "reasoning": "reasoning",
    "files": "files",
}

# Words of keys that no list has.
_INPUT_WORDS = frozenset({"prompt", "prompts", "input", "inputs", "messages", "request"})
_OUTPUT_WORDS = frozenset(
    {
        "answer",
        "choices",
        "completion",
        "completions",
        "generations",
        "output",
        "outputs",
        "response",
    }
)
_TOOL_WORDS = frozenset({"tools", "functions"})
#: What may follow such a word: output.value, request_data.
_FORM_WORDS = frozenset(
    {"body", "content", "data", "json", "messages", "payload", "raw", "text", "value"}
)


def layouts_of(found: Attributes) -> Layouts:
    """Return where a span holds its contents."""
    keys = tuple(found)
    # What is kept is bounded: hostile keys nest, a map every two letters.
    read = _layouts if sum(map(len, keys)) <= _KEPT_TEXT else _layouts.__wrapped__
    return read(keys)


@lru_cache(128)
def _layouts(keys: tuple[str, ...]) -> Layouts:
    groups = _groups(keys)
    whole = frozenset(keys)
    words = _Words(keys)
    proxied = tuple({key.rpartition(".")[0]: None for key in keys if _is_proxied(key)})

    def find(places: Iterable[_Place], only: str = "") -> tuple[Layout, ...]:
        more = (_Place(prefix, only) for prefix in proxied if only)
        layouts = (_layout(groups, whole, place) for place in (*places, *more))
        return tuple(layout for layout in layouts if layout is not None)

    return Layouts(
        system=find(_SYSTEMS),
        prompt=find(_PROMPTS, "messages") or words.ending(_INPUT_WORDS, _ASKED),
        tools=find(_TOOL_PLACES, "tools") or words.ending(_TOOL_WORDS, ()),
        response=(*_spread_answer(whole), *find(_RESPONSES, "choices"))
        or words.ending(_OUTPUT_WORDS, _ANSWERED),
        request_metadata=find(_REQUESTS) or words.model(),
        response_metadata=find(_METADATA) or _usage(whole, groups),
        answers=(
            *(key for key in ANSWERS if key in whole),
            *(f"{prefix}.choices" for prefix in proxied if f"{prefix}.choices" in whole),
        ),
        tokens=places_of(keys),
        usage=usage.places_of(keys, tuple(key for key in ANSWERS if key in whole)),
        ending=endings.places_of(keys),
        has_events=any(key in whole for key in events.LISTS),
    )


def _groups(keys: Iterable[str]) -> _Groups:
    """Return keys by their first two words, those of an operation by three."""
    groups: _Groups = {}
    for key in keys:
        start = len(OPERATION) + 1 if key.startswith(f"{OPERATION}.") else key.find(".") + 1
        end = key.find(".", start) if start else -1
        if end > 0:
            groups.setdefault(key[:end], []).append((key[end + 1 :], key))
    return groups


def _is_proxied(key: str) -> bool:
    return key.startswith("llm.") and any(
        provider_of(key, last) for last in ("messages", "choices", "tools")
    )


def _layout(groups: _Groups, whole: frozenset[str], place: _Place) -> Layout | None:
    """Return where a content is, None if it is not in this place."""
    prefix, only, without, parts = place
    full = f"{prefix}.{only}" if only else prefix
    if full in whole:
        return Layout(full, parts=parts)
    pairs = groups.get(prefix, [])
    if only:
        start = len(only) + 1
        pairs = [(rest[start:], key) for rest, key in pairs if rest.startswith(f"{only}.")]
    elif without:
        pairs = [pair for pair in pairs if pair[0].partition(".")[0] not in without]
    if not pairs:
        return None
    shape, refused = unflatten(pairs)
    if prefix.startswith("llm."):
        shape = _unwrapped(shape)
    return Layout("", shape, tuple(f"{full}.{key}" for key in refused), parts)


def _unwrapped(shape: Any) -> Any:
    """Return a shape without maps that hold one thing only, and say what it is."""
    if isinstance(shape, list):
        return [_unwrapped(item) for item in shape]
    if not isinstance(shape, dict):
        return shape
    if len(shape) == 1:
        ((key, inner),) = shape.items()
        if key in _WRAPPERS:
            return _unwrapped(inner)
    return {key: _unwrapped(inner) for key, inner in shape.items()}


def _spread_answer(whole: frozenset[str]) -> tuple[Layout, ...]:
    """Return the answer of the Vercel AI SDK as one message."""
    for prefix in ("ai.response", "ai.result"):
        message = {
            name: f"{prefix}.{word}"
            for word, name in _VERCEL.items()
            if f"{prefix}.{word}" in whole
        }
        if message:
            return (Layout("", [message], parts=PARSED),)
    return ()


class _Words:
    """The keys of a span by their last words, for instrumentations that are not known."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = keys

    @cached_property
    def _last(self) -> list[tuple[str, list[str]]]:
        return [(key, words_of(key)[-2:]) for key in self._keys]

    def ending(self, words: frozenset[str], parts: tuple[str, ...]) -> tuple[Layout, ...]:
        """Return the attributes whose key ends in one of the words, or in one and what may follow it."""
        found = []
        for key, last in self._last:
            if not last:
                continue
            at = -2 if len(last) > 1 and last[-1] in _FORM_WORDS and last[-1] not in words else -1
            if last[at] in words and not key.startswith("metadata."):
                found.append(Layout(key, parts=parts))
        return tuple(found)

    def model(self) -> tuple[Layout, ...]:
        """Return the name of the model, where nothing else is known of a request."""
        for key, last in self._last:
            if last in (["model", "name"], ["request", "model"], ["model", "id"]):
                return (Layout("", {"model": key}),)
        return ()


def _usage(whole: frozenset[str], groups: _Groups) -> tuple[Layout, ...]:
    """Return why an answer ended and what it used, as OpenInference writes it."""
    shape: dict[str, Any] = {}
    if "llm.finish_reason" in whole:
        shape["finish_reason"] = "llm.finish_reason"
    if counts := groups.get("llm.token_count"):
        shape["token_count"] = unflatten(counts)[0]
    return (Layout("", shape),) if shape else ()
