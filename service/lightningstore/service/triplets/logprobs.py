"""Log-probabilities of an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets.search import find_first
from lightningstore.service.triplets.values import Attributes, Warn, number, read_json, write_json
from lightningstore.v1.triplet_pb2 import TripletResponse

CONTENT = "logprobs.content"
_NAMES = frozenset({"logprobs"})


def fill(response: TripletResponse, found: Attributes, answers: Iterable[str], warn: Warn) -> None:
    """Write the log-probabilities of a call into its response, wherever its attributes hold them.

    Numbers that JSON does not have (an alternative's -Infinity) are null there. `logprobs` is empty unless every
    token of the answer has a finite one.
    """
    items = items_of(found, answers, warn)
    if items is not None:
        response.logprobs_json = write_json(items) or b""
        response.logprobs.extend(numbers_of(items))


def items_of(found: Attributes, answers: Iterable[str], warn: Warn) -> Any:
    """Return the items of log-probabilities of a call, None if it has none."""
    items = _traced(found, warn)
    return _answered(found, answers) if items is None else items


def numbers_of(items: Any) -> list[float]:
    """Return the log-probability of each item, nothing unless every item has a finite one."""
    if not isinstance(items, list):
        return []
    values = [number(i.get("logprob")) if isinstance(i, dict) else None for i in items]
    return [] if None in values else values  # type: ignore[return-value]


def _traced(found: Attributes, warn: Warn) -> Any:
    if CONTENT not in found:
        return None
    value = from_any_value(found[CONTENT])
    if not isinstance(value, str):
        return value
    try:
        return read_json(value)
    except ValueError as error:
        warn(CONTENT, str(error))
        return None


def _answered(found: Attributes, answers: Iterable[str]) -> Any:
    """Return the items of log-probabilities within an answer, None if it has none."""
    for key in answers:
        value = from_any_value(found[key])
        if isinstance(value, str):
            if '"logprobs"' not in value and "'logprobs'" not in value:
                continue
            try:
                value = read_json(value)
            except ValueError:
                continue
        items = find_first(value, _NAMES)
        if isinstance(items, dict):
            items = _of_object(items)
        if isinstance(items, list) and items:
            return items
    return None


def _of_object(logprobs: dict[str, Any]) -> Any:
    """Return the items of `logprobs` of a chat, or of a completion, which has lists side by side."""
    if "content" in logprobs:
        return logprobs["content"]
    values, texts = logprobs.get("token_logprobs"), logprobs.get("tokens")
    if not isinstance(values, list):
        return None
    if not isinstance(texts, list) or len(texts) != len(values):
        return [{"logprob": value} for value in values]
    return [{"token": text, "logprob": value} for text, value in zip(texts, values, strict=True)]
