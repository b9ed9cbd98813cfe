"""Messages of a call that are events of its span, or a list of events in one of its attributes."""

from __future__ import annotations

from typing import Any, NamedTuple

from lightningstore.client.otlp import from_any_value
from lightningstore.service.triplets.values import Attributes, parsed
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Attributes that hold a list of events, each with its name.
LISTS = ("events", "all_messages_events")
#: Keys of events that are read as if they were the span's.
_CONTENT_PREFIXES = ("gen_ai.", "llm.", "ai.")
_NAME = "event.name"
#: Attributes of an event that hold what it says.
_BODIES = ("gen_ai.event.content", "body", "event.body")
#: Names of events that are messages, and whose.
_MESSAGES = {
    "gen_ai.choice": "choice",
    **{
        f"gen_ai.{role}.message": role
        for role in ("system", "user", "assistant", "tool", "developer")
    },
}


class Messages(NamedTuple):
    """What events tell of a call."""

    prompt: list[Any]
    response: list[Any]


def merged(span: Span, found: Attributes) -> tuple[Attributes, bool]:
    """Return the attributes of a call with those of its events, and whether some of the events are messages."""
    more: dict[str, AnyValue] = {}
    has_messages = False
    for event in span.events:
        if event.name in _MESSAGES:
            has_messages = True
        elif event.name != "exception":
            for pair in event.attributes:
                if pair.key == _NAME and pair.value.string_value in _MESSAGES:
                    has_messages = True
                elif pair.key.startswith(_CONTENT_PREFIXES):
                    more[pair.key] = pair.value
    return {**more, **found} if more else found, has_messages


def messages_of(span: Span, found: Attributes) -> Messages:
    """Return the messages among the events of a call."""
    messages = Messages([], [])
    for event in span.events:
        fields = {pair.key: from_any_value(pair.value) for pair in event.attributes}
        _add(messages, str(fields.pop(_NAME, "") or event.name), fields)
    for key in LISTS:
        if key in found:
            listed = parsed(from_any_value(found[key]))
            for fields in listed if isinstance(listed, list) else ():
                if isinstance(fields, dict) and isinstance(name := fields.get(_NAME), str):
                    _add(messages, name, {k: v for k, v in fields.items() if k != _NAME})
    return messages


def _add(messages: Messages, name: str, fields: dict[str, Any]) -> None:
    role = _MESSAGES.get(name)
    if role is None:
        return
    message: dict[str, Any] = {}
    for key, value in fields.items():
        body = parsed(value)
        if key in _BODIES and isinstance(body, dict):
            message.update(body)
        elif key in _BODIES:
            message["content"] = body
        elif not key.startswith(("gen_ai.", "event.")):
            message[key] = body if key in ("message", "tool_calls") else value
    if role == "choice":
        messages.response.append(message)
    else:
        messages.prompt.append({"role": role, **message})
