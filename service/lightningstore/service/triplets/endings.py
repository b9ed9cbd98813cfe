"""Which model answered a call, and why it stopped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets.kinds import words_of
from lightningstore.service.triplets.search import find_first
from lightningstore.service.triplets.tokens import ANSWERS
from lightningstore.service.triplets.values import Attributes, parsed

#: Last words of a key that names the model, from the best on: the one that answered before the one that was asked.
_MODEL_WORDS = (
    ["response", "model"],
    ["output", "model"],
    ["request", "model"],
    ["input", "model"],
    ["model", "name"],
    ["model", "id"],
)
_MODEL_PREFIXES = ("llm.", "gen_ai.", "ai.")
_REASON_WORDS = (
    ["finish", "reason"],
    ["finish", "reasons"],
    ["stop", "reason"],
    ["stop", "reasons"],
)
#: Words of keys about prompts, which repeat earlier answers.
_PROMPT_WORDS = frozenset({"prompt", "prompts", "input"})
_REASON_NAMES = frozenset({"finish_reason", "finishReason", "stop_reason", "stopReason"})
_MODEL_NAMES = frozenset({"model"})
#: Reasons, in lower case, of an answer that ended at a limit of tokens.
_LIMITS = frozenset(
    {
        "length",
        "max_completion_tokens",
        "max_length",
        "max_new_tokens",
        "max_output_tokens",
        "max_tokens",
        "model_context_window_exceeded",
        "model_length",
        "token_limit",
    }
)


class EndingPlaces(NamedTuple):
    """Keys of a span that name its model and its finish reason, the best ones first."""

    models: tuple[str, ...]
    reasons: tuple[str, ...]
    #: Those that may hold the answer of a model's server whole.
    answers: tuple[str, ...]


def places_of(keys: Iterable[str]) -> EndingPlaces:
    """Return which of the keys name the model and the finish reason of a call."""
    models: list[tuple[int, str]] = []
    reasons: list[tuple[int, str]] = []
    for key in keys:
        lower = key.lower()
        if "model" not in lower and "reason" not in lower:
            continue
        words = words_of(key)
        last = words[-2:]
        if last in _MODEL_WORDS:
            models.append((_MODEL_WORDS.index(last), key))
        elif words and words[-1] == "model" and key.startswith(_MODEL_PREFIXES):
            models.append((len(_MODEL_WORDS), key))
        elif last in _REASON_WORDS and not _PROMPT_WORDS & set(words):
            reasons.append((len(key), key))
    return EndingPlaces(
        tuple(key for _, key in sorted(models)),
        tuple(key for _, key in sorted(reasons)),
        tuple(key for key in ANSWERS if key in keys),
    )


def model_of(found: Attributes, places: EndingPlaces) -> str:
    """Return the name of the model that answered a call, empty if its attributes do not say."""
    for key in places.models:
        if name := found[key].string_value:
            return name
    for key in places.answers:
        text = found[key].string_value
        if "model" in text and isinstance(name := find_first(parsed(text), _MODEL_NAMES), str):
            return name
    return ""


def reason_of(found: Attributes, places: EndingPlaces) -> str:
    """Return why the model stopped, as an attribute says; empty if none does."""
    for key in places.reasons:
        if reason := _first(parsed(from_any_value(found[key]))):
            return reason
    return ""


def reason_within(response: Any) -> str:
    """Return why the model stopped, as its answer says; empty if it does not."""
    return _first(find_first(response, _REASON_NAMES))


def _first(value: Any) -> str:
    if isinstance(value, list):
        value = value[0] if value else ""
    return value if isinstance(value, str) else ""


def is_limit(reason: str) -> bool:
    """Tell whether a finish reason is a limit of tokens."""
    return reason.lower().rpartition(".")[2].replace("-", "_") in _LIMITS
