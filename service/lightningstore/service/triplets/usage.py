"""Number of tokens of a call's prompt and response, as the model's server reported them.

Instrumentations agree on the words of the keys, not on their order: `gen_ai.usage.input_tokens`,
`llm.token_count.prompt`, `ai.usage.promptTokens`, `usage_metadata.prompt_token_count`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets.kinds import words_of
from lightningstore.service.triplets.search import find_first
from lightningstore.service.triplets.values import Attributes, parsed

_PROMPT_WORDS = frozenset({"prompt", "input"})
_RESPONSE_WORDS = frozenset({"completion", "output", "response", "candidates", "generated"})
_TOKEN_WORDS = frozenset({"token", "tokens"})
#: A count with one of these words is a part of another count, or a limit.
_OTHER_WORDS = frozenset(
    {
        *("accepted", "audio", "budget", "cache", "cached", "cost", "image", "ids", "limit", "max"),
        *("min", "reasoning", "rejected", "thinking", "thoughts"),
    }
)
#: Last words of a key whose value is an object with the counts.
_OBJECT_WORDS = (["usage"], ["usage", "details"], ["usage", "metadata"], ["token", "usage"])
#: Keys of that object in an answer of a model's server.
_OBJECT_KEYS = frozenset({"usage", "usage_metadata", "usageMetadata"})
_HIGHEST = (1 << 31) - 1


class Usage(NamedTuple):
    """Numbers of tokens; None where none is reported."""

    prompt: int | None
    response: int | None


class UsagePlaces(NamedTuple):
    """Keys of a span that tell its usage."""

    prompt: tuple[str, ...]
    response: tuple[str, ...]
    #: Those whose value is an object with the counts.
    objects: tuple[str, ...]
    #: Those that may hold the answer of a model's server whole.
    answers: tuple[str, ...]


def places_of(keys: Iterable[str], answers: tuple[str, ...]) -> UsagePlaces:
    """Return which of the keys tell the usage of a call."""
    found: tuple[list[str], list[str], list[str]] = ([], [], [])
    for key in keys:
        lower = key.lower()
        if "token" in lower or "usage" in lower:
            words = words_of(key)
            if (side := _side(words)) is not None:
                found[side].append(key)
            elif any(words[-len(last) :] == last for last in _OBJECT_WORDS):
                found[2].append(key)
    return UsagePlaces(tuple(found[0]), tuple(found[1]), tuple(found[2]), answers)


def _side(words: list[str]) -> int | None:
    """Return 0 for a count of the prompt's tokens, 1 for one of the response's, None for anything else."""
    last = [word for word in words[-3:] if word != "count"]
    if len(last) < 2 or not _TOKEN_WORDS & set(last[-2:]) or _OTHER_WORDS & set(words):
        return None
    for side, names in enumerate((_PROMPT_WORDS, _RESPONSE_WORDS)):
        if names & set(last[-2:]):
            return side
    return None


def of_call(found: Attributes, places: UsagePlaces) -> Usage:
    """Return the usage of a call, wherever its attributes tell it."""
    prompt = _first(from_any_value(found[key]) for key in places.prompt)
    response = _first(from_any_value(found[key]) for key in places.response)
    if prompt is not None or response is not None:
        return Usage(prompt, response)
    for key in places.objects:
        usage = _of_object(parsed(from_any_value(found[key])))
        if usage != (None, None):
            return usage
    for key in places.answers:
        text = found[key].string_value
        if "usage" in text:
            usage = _of_object(find_first(parsed(text), _OBJECT_KEYS))
            if usage != (None, None):
                return usage
    return Usage(None, None)


def _of_object(value: Any) -> Usage:
    """Return the usage that an object tells: `{"prompt_tokens": 5}`, or `{"input": 5}`."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for key, count in value.items() if isinstance(value, Mapping) else ():
        words = words_of(str(key))
        side = _side(words if len(words) > 1 else [*words, "tokens"])
        if side is not None:
            sides[side].append(count)
    return Usage(_first(sides[0]), _first(sides[1]))


def _first(values: Iterable[Any]) -> int | None:
    """Return the first value that is a number of tokens."""
    for value in values:
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and 0 <= value <= _HIGHEST
        ):
            return int(value)
    return None
