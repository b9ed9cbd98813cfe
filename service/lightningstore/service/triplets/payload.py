"""What a call's span holds of prompt and response, as the instrumentations write it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from lightningstore.service.triplets.values import (
    Attributes,
    check_tokens,
    number,
    plain,
    read_json,
    read_literal,
    tokens,
    unflatten,
    write_json,
)
from lightningstore.v1.triplet_pb2 import Triplet
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PROMPT_TOKENS = ("prompt_token_ids", "agentlightning.operation.output.prompt_token_ids")
RESPONSE_TOKENS = (
    "response_token_ids",
    "agentlightning.operation.output.response_token_ids.0",
    "agentlightning.operation.output.choices.0.token_ids",
    "agentlightning.operation.output.choices.0.provider_specific_fields.token_ids",
)
LOGPROBS = "logprobs.content"
_INPUT = "agentlightning.operation.input"
_OUTPUT = "agentlightning.operation.output"
#: Prefix, and what of it goes elsewhere. The first that is there is taken.
_PROMPTS = (("gen_ai.prompt", ()), (f"{_INPUT}.messages", ()), ("gen_ai.input.messages", ()))
_COMPLETIONS = (
    ("gen_ai.completion", ()),
    (f"{_OUTPUT}.choices", ()),
    ("gen_ai.output.messages", ()),
)
_REQUESTS = (("gen_ai.request", ()), (_INPUT, ("messages",)))
_RESPONSES = (
    ("gen_ai.response", ()),
    (_OUTPUT, ("choices", "prompt_token_ids", "response_token_ids")),
)
_ROOTS = ("gen_ai.", "agentlightning.operation.")

# The proxy's
RAW_REQUEST = "raw_gen_ai_request"
PROXY_REQUEST = "litellm_request"
_VLLM_PROMPT = "llm.hosted_vllm.prompt_token_ids"
_VLLM_RESPONSE = "llm.hosted_vllm.response_token_ids"
_VLLM_CHOICES = "llm.hosted_vllm.choices"
PROXY_RESPONSE_IDS = ("gen_ai.response.id", "llm.hosted_vllm.id")

Warn = Callable[[str, str], None]
Tokens = tuple[list[int], list[int]]
NO_TOKENS = "no list of token ids: 32-bit integers are wanted"


def attributes(span: Span) -> Attributes:
    """Return the attributes of a span by key."""
    return {pair.key: pair.value for pair in span.attributes}


def nobody(_key: str, _text: str) -> None:
    """Take a warning that has been given before."""


# Token ids


def tracer_tokens(found: Attributes, warn: Warn) -> Tokens:
    """Return the token ids of prompt and response, as a tracer writes them."""
    return _first(found, PROMPT_TOKENS, warn), _first(found, RESPONSE_TOKENS, warn)


def _first(found: Attributes, keys: Iterable[str], warn: Warn) -> list[int]:
    for key in keys:
        if key in found:
            ids = tokens(found[key])
            if ids is not None:
                return ids
            warn(key, NO_TOKENS)
    return []


def proxy_tokens(name: str, found: Attributes, warn: Warn) -> Tokens:
    """Return the token ids of prompt and response, as a proxy writes them."""
    if name == PROXY_REQUEST:
        return _first(found, PROMPT_TOKENS[:1], warn), _proxy_response(
            found, RESPONSE_TOKENS[0], warn
        )
    prompt = _first(found, (_VLLM_PROMPT,), warn)
    response = _proxy_response(found, _VLLM_RESPONSE, warn)
    if not response and _VLLM_CHOICES in found:
        response = _choice(found, warn)
    return prompt, response


def _proxy_response(found: Attributes, key: str, warn: Warn) -> list[int]:
    """Return a list of ids, or the first of a list of lists."""
    if key not in found:
        return []
    if (ids := tokens(found[key])) is not None:
        return ids
    value = _read(found, key, warn)
    if isinstance(value, list) and value and (ids := check_tokens(value[0])) is not None:
        return ids
    warn(key, NO_TOKENS)
    return []


def _choice(found: Attributes, warn: Warn) -> list[int]:
    value = _read(found, _VLLM_CHOICES, warn)
    first = value[0] if isinstance(value, list) and value else None
    given = first.get("token_ids") if isinstance(first, dict) else None
    if given is None:
        return []
    if (ids := check_tokens(given)) is None:
        warn(_VLLM_CHOICES, NO_TOKENS)
        return []
    return ids


def _read(found: Attributes, key: str, warn: Warn) -> Any:
    value = found[key]
    if value.WhichOneof("value") != "string_value":
        return plain(value)
    try:
        return read_literal(value.string_value)
    except ValueError:
        warn(key, "neither JSON nor the text of a Python list")
        return None


# The triplet


def fill(triplet: Triplet, found: Attributes, warn: Warn) -> None:
    """Write what the span of a tracer's call tells into a triplet."""
    prompt, response = triplet.prompt, triplet.response
    rooted = [key for key in found if key.startswith(_ROOTS)]
    messages = _content(found, rooted, _PROMPTS, warn)
    if messages is not None:
        prompt.content_json = _json(messages, "prompt", warn)
        prompt.image_urls.extend(image_urls(messages, warn))
    completions = _content(found, rooted, _COMPLETIONS, warn)
    if completions is not None:
        response.content_json = _json(completions, "completion", warn)
    for field, places in (("request_json", _REQUESTS), ("response_json", _RESPONSES)):
        if told := _content(found, rooted, places, warn):
            setattr(triplet, field, _json(told, field, warn))
    _logprobs(triplet, found, warn)


def _json(value: Any, what: str, warn: Warn) -> bytes:
    written = write_json(value)
    if written is None:
        warn(what, "cannot be written as JSON: too deep, or a number too large")
    return written or b""


def _content(
    found: Attributes,
    keys: list[str],
    places: Iterable[tuple[str, tuple[str, ...]]],
    warn: Warn,
) -> Any:
    """Return what the first prefix that is there holds, None if none is."""
    for prefix, without in places:
        if prefix in found:
            return _whole(found, prefix)
        start = len(prefix) + 1
        dotted = f"{prefix}."
        pairs = [
            (key[start:], plain(found[key]))
            for key in keys
            if key.startswith(dotted) and key[start:].partition(".")[0] not in without
        ]
        if pairs:
            value, refused = unflatten(pairs)
            for key in refused:
                warn(dotted + key, "nests too deep, or is a value where other keys say it is a map")
            return value
    return None


def _whole(found: Attributes, key: str) -> Any:
    """Return a content that came as one attribute; text of JSON as what it says."""
    value = plain(found[key])
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return read_json(value)
        except ValueError:
            return value
    return value


def _logprobs(triplet: Triplet, found: Attributes, warn: Warn) -> None:
    if LOGPROBS not in found:
        return
    text = found[LOGPROBS].string_value
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
