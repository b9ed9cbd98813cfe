"""What a call's span holds of prompt and response, as the instrumentations write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

from lightningstore.service.rules import wire
from lightningstore.service.triplets.values import (
    Attributes,
    Tokens,
    check_tokens,
    number,
    plain,
    read_json,
    read_literal,
    tokens,
    unflatten,
    write_json,
)
from lightningstore.v1.triplet_pb2 import Triplet, TripletPrompt
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROMPT_TOKENS = ("prompt_token_ids", "agentlightning.operation.output.prompt_token_ids")
RESPONSE_TOKENS = (
    "response_token_ids",
    "agentlightning.operation.output.response_token_ids.0",
    "agentlightning.operation.output.choices.0.token_ids",
    "agentlightning.operation.output.choices.0.provider_specific_fields.token_ids",
)
LOGPROBS = "logprobs.content"
_OPERATION = "agentlightning.operation."
_INPUT = f"{_OPERATION}input"
_OUTPUT = f"{_OPERATION}output"
_ROOTS = ("gen_ai.", _OPERATION)
#: Characters of a span's keys above which their layout is not kept.
_KEPT_TEXT = 4096
_TOKEN_IDS = TripletPrompt.TOKEN_IDS_FIELD_NUMBER


class _Place(NamedTuple):
    """Where a content may be written."""

    prefix: str
    #: The only part of it that counts, if there is one.
    only: str = ""
    #: The parts of it that go elsewhere.
    without: tuple[str, ...] = ()


class _Layout(NamedTuple):
    """Where a span holds a content, which its keys alone decide."""

    #: The one attribute that has all of it, empty where it is spread over several.
    whole: str
    #: Maps and lists, with the keys of attributes where their values belong.
    shape: Any = None
    #: Keys that found no place.
    refused: tuple[str, ...] = ()


# The first that is there is taken.
_PROMPTS = (
    _Place("gen_ai.prompt"),
    _Place(_INPUT, "messages"),
    _Place("gen_ai.input", "messages"),
)
_COMPLETIONS = (
    _Place("gen_ai.completion"),
    _Place(_OUTPUT, "choices"),
    _Place("gen_ai.output", "messages"),
)
_REQUESTS = (_Place("gen_ai.request"), _Place(_INPUT, without=("messages",)))
_RESPONSES = (
    _Place("gen_ai.response"),
    _Place(_OUTPUT, without=("choices", "prompt_token_ids", "response_token_ids")),
)

# The proxy's
RAW_REQUEST = "raw_gen_ai_request"
PROXY_REQUEST = "litellm_request"
_VLLM_PROMPT = "llm.hosted_vllm.prompt_token_ids"
_VLLM_RESPONSE = "llm.hosted_vllm.response_token_ids"
_VLLM_CHOICES = "llm.hosted_vllm.choices"
PROXY_RESPONSE_IDS = ("gen_ai.response.id", "llm.hosted_vllm.id")

Warn = Callable[[str, str], None]
#: By prefix: what follows it in the keys, and the keys.
Groups = dict[str, list[tuple[str, str]]]
NO_TOKENS = "no list of token ids: integers from 0 to 2147483647 are wanted"


def attributes(span: Span) -> Attributes:
    """Return the attributes of a span by key."""
    return {pair.key: pair.value for pair in span.attributes}


def nobody(_key: str, _text: str) -> None:
    """Take a warning that has been given before."""


# Token ids


def tracer_tokens(found: Attributes, warn: Warn) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, as a tracer writes them."""
    return _first(found, PROMPT_TOKENS, warn), _first(found, RESPONSE_TOKENS, warn)


def _first(found: Attributes, keys: Iterable[str], warn: Warn) -> Tokens:
    for key in keys:
        if key in found:
            ids = tokens(found[key])
            if ids is not None:
                return ids
            warn(key, NO_TOKENS)
    return []


def proxy_tokens(name: str, found: Attributes, warn: Warn) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, as a proxy writes them."""
    if name == PROXY_REQUEST:
        prompt = _first(found, PROMPT_TOKENS[:1], warn)
        return prompt, _first(found, RESPONSE_TOKENS[:1], warn)
    prompt = _first(found, (_VLLM_PROMPT,), warn)
    response = _first(found, (_VLLM_RESPONSE,), warn)
    if not response and _VLLM_CHOICES in found:
        response = _choice(found, warn)
    return prompt, response


def _choice(found: Attributes, warn: Warn) -> Tokens:
    value = plain(found[_VLLM_CHOICES])
    if isinstance(value, str):
        try:
            value = read_literal(value)
        except ValueError:
            warn(_VLLM_CHOICES, "neither JSON nor the text of a Python list")
            return []
    first = value[0] if isinstance(value, list) and value else None
    given = first.get("token_ids") if isinstance(first, dict) else None
    if given is None:
        return []
    if (ids := check_tokens(given)) is None:
        warn(_VLLM_CHOICES, NO_TOKENS)
        return []
    return ids


# The triplet


def put_tokens(triplet: Triplet, prompt: Tokens, response: Tokens) -> None:
    """Write token ids into a triplet."""
    for side, ids in ((triplet.prompt, prompt), (triplet.response, response)):
        if isinstance(ids, bytes):
            side.MergeFromString(wire.field(_TOKEN_IDS, ids))
        elif ids:
            side.token_ids.extend(ids)


def fill(triplet: Triplet, found: Attributes, warn: Warn) -> None:
    """Write what the span of a tracer's call tells into a triplet."""
    prompt, response = triplet.prompt, triplet.response
    asked, answered, request, told = _layouts_of(found)
    messages = _content(asked, found, warn)
    if messages is not None:
        prompt.content_json = _json(messages, "prompt", warn)
        if urls := image_urls(messages, warn):
            prompt.image_urls.extend(urls)
    completions = _content(answered, found, warn)
    if completions is not None:
        response.content_json = _json(completions, "completion", warn)
    if more := _content(request, found, warn):
        triplet.request_json = _json(more, "request", warn)
    if more := _content(told, found, warn):
        triplet.response_json = _json(more, "response", warn)
    if LOGPROBS in found:
        _logprobs(triplet, found[LOGPROBS].string_value, warn)


def _layouts_of(found: Attributes) -> tuple[_Layout | None, ...]:
    keys = tuple(found)
    # Spans of one kind have the same keys. What is kept is bounded: hostile keys nest, a map every two letters.
    read = _layouts if sum(map(len, keys)) <= _KEPT_TEXT else _layouts.__wrapped__
    return read(keys)


@lru_cache(128)
def _layouts(keys: tuple[str, ...]) -> tuple[_Layout | None, ...]:
    """Return where a span with these keys holds prompt, completion, request and response."""
    groups: Groups = {}
    for key in keys:
        root = next((root for root in _ROOTS if key.startswith(root)), None)
        end = -1 if root is None else key.find(".", len(root))
        if end > 0:
            groups.setdefault(key[:end], []).append((key[end + 1 :], key))
    whole = frozenset(keys)
    return tuple(
        _layout(groups, whole, places) for places in (_PROMPTS, _COMPLETIONS, _REQUESTS, _RESPONSES)
    )


def _layout(groups: Groups, keys: frozenset[str], places: Iterable[_Place]) -> _Layout | None:
    """Return where a content is, in the first place that is there; None if none is."""
    for prefix, only, without in places:
        whole = f"{prefix}.{only}" if only else prefix
        if whole in keys:
            return _Layout(whole)
        pairs = groups.get(prefix, [])
        if only:
            start = len(only) + 1
            pairs = [(key[start:], full) for key, full in pairs if key.startswith(f"{only}.")]
        elif without:
            pairs = [pair for pair in pairs if pair[0].partition(".")[0] not in without]
        if pairs:
            shape, refused = unflatten(pairs)
            return _Layout("", shape, tuple(f"{whole}.{key}" for key in refused))
    return None


def _json(value: Any, what: str, warn: Warn) -> bytes:
    written = write_json(value)
    if written is None:
        warn(what, "cannot be written as JSON: too deep, or a number too large")
    return written or b""


def _content(layout: _Layout | None, found: Attributes, warn: Warn) -> Any:
    """Return a content, None if there is none."""
    if layout is None:
        return None
    if layout.whole:
        return _whole(found, layout.whole)
    for key in layout.refused:
        warn(key, "nests too deep, or is a value where other keys say it is a map")
    return _filled(layout.shape, found)


def _filled(shape: Any, found: Attributes) -> Any:
    """Return maps and lists with the values of the keys that stand in them."""
    if isinstance(shape, str):
        return plain(found[shape])
    if isinstance(shape, list):
        return [_filled(item, found) for item in shape]
    return {key: _filled(item, found) for key, item in shape.items()}


def _whole(found: Attributes, key: str) -> Any:
    """Return a content that came as one attribute; text of JSON as what it says."""
    value = plain(found[key])
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return read_json(value)
        except ValueError:
            return value
    return value


def _logprobs(triplet: Triplet, text: str, warn: Warn) -> None:
    try:
        items = read_json(text)
    except ValueError:
        warn(LOGPROBS, "no JSON text")
        return
    if items is None:
        return
    triplet.response.logprobs_json = text.encode()
    if isinstance(items, list):
        values = [number(i.get("logprob")) if isinstance(i, dict) else None for i in items]
        if None not in values:
            triplet.response.logprobs.extend(values)  # type: ignore[arg-type]


def image_urls(messages: Any, warn: Warn) -> list[str]:
    """Return the URLs of images in the messages, in their order."""
    urls: list[str] = []
    if isinstance(messages, dict):
        numbered = [key for key in messages if key.isascii() and key.isdecimal()]
        messages = [messages[key] for key in sorted(numbered, key=lambda k: (len(k), k))]
    for message in messages if isinstance(messages, list) else ():
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str) and "image_url" in content and content.lstrip()[:1] == "[":
            try:
                content = read_json(content)
            except ValueError:
                warn("prompt content", "no JSON, so its images are unknown")
        if isinstance(content, dict):
            content = list(content.values())
        for part in content if isinstance(content, list) else ():
            if isinstance(part, dict) and part.get("type") == "image_url":
                image = part.get("image_url")
                url = image.get("url") if isinstance(image, dict) else image
                if isinstance(url, str):
                    urls.append(url)
    return urls
