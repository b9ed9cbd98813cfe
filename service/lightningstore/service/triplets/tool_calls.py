"""Tool calls of an answer. Some tracers make spans of them, below the call, and leave them out of the answer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets.values import Attributes, attributes_of
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_NAMES = ("gen_ai.tool.name", "tool.name")
_IDS = ("gen_ai.tool.call.id", "tool.call.id", "tool_call.id")
_ARGUMENTS = ("gen_ai.tool.call.arguments", "tool.arguments", "input.value", "tool.parameters")
_CALL_KEYS = frozenset({"tool_calls", "toolCalls", "function_call", "tool_call"})
_CALL_TYPES = frozenset({"tool_call", "tool-call", "tool_use", "function_call"})
#: Values of an answer that are looked at.
_LOOKED_AT = 1000


def has_call(answers: Any) -> bool:
    """Tell whether there is a tool call in the answers."""
    waiting = deque([answers])
    for _ in range(_LOOKED_AT):
        if not waiting:
            break
        value = waiting.popleft()
        if isinstance(value, list):
            waiting.extend(value[:_LOOKED_AT])
        elif isinstance(value, dict):
            if value.get("type") in _CALL_TYPES or any(value.get(key) for key in _CALL_KEYS):
                return True
            waiting.extend(value.values())
    return False


def with_calls(answers: Any, spans: Sequence[Span]) -> Any:
    """Return the answers with the tool calls that spans tell of, unless there are some in them."""
    if not spans or has_call(answers):
        return answers
    calls = [_call_of(attributes_of(span), span.name) for span in spans]
    if isinstance(answers, list) and answers and isinstance(answers[-1], dict):
        return [*answers[:-1], {**answers[-1], "tool_calls": calls}]
    message: dict[str, Any] = {"role": "assistant", "tool_calls": calls}
    return [*(answers if isinstance(answers, list) else ()), message]


def _call_of(found: Attributes, span_name: str) -> dict[str, Any]:
    call: dict[str, Any] = {"type": "function"}
    if (call_id := _first(found, _IDS)) is not None:
        call["id"] = call_id
    call["function"] = {"name": _first(found, _NAMES) or span_name}
    if (arguments := _first(found, _ARGUMENTS)) is not None:
        call["function"]["arguments"] = arguments
    return call


def _first(found: Attributes, keys: Iterable[str]) -> Any:
    return next((from_any_value(found[key]) for key in keys if key in found), None)
