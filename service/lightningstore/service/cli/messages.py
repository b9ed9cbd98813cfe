"""Messages of a model as one line of text, in the forms of providers and instrumentations."""

from __future__ import annotations

import json
from typing import Any

from lightningstore.client.message_json import json_value
from lightningstore.service.rules.json_values import MAX_MESSAGE_LEVELS

#: Where a message or a part of one has what it says. The first with a text counts.
_CONTENTS = ("content", "contents", "parts", "text", "response", "result", "output")
#: What may lie around it.
_WRAPPERS = ("message", "message_content", "kwargs", "data", "generations", "choices", "candidates")
_CALLS = ("tool_calls", "toolCalls", "tool_call", "function_call", "functionCall", "function")
_NAMES = ("name", "toolName", "tool_name")
_ARGUMENTS = ("arguments", "args", "input")


def last_text(content: bytes) -> str:
    """Return the text of the last message of a prompt or a response in one line; if it has none, its JSON."""
    if not content:
        return ""
    value = json_value(content)
    last = value[-1] if isinstance(value, list) and value else value
    text = text_of(last) or json.dumps(last, ensure_ascii=False)
    return " ".join(text.split())


def text_of(value: Any, level: int = 0) -> str:
    """Return what a message says, then the tools that it calls: `Let me see. get_weather({"city": "Paris"})`."""
    if isinstance(value, str):
        return value
    if level > MAX_MESSAGE_LEVELS:
        return ""
    if isinstance(value, list):
        return " ".join(filter(None, (text_of(item, level + 1) for item in value)))
    if not isinstance(value, dict):
        return ""
    if call := _call_text(value):
        return call
    said = [_first(value, _CONTENTS, level), _first(value, _CALLS, level)]
    return " ".join(filter(None, said)) or _first(value, _WRAPPERS, level)


def _first(value: dict[str, Any], keys: tuple[str, ...], level: int) -> str:
    found = (text_of(value[key], level + 1) for key in keys if key in value)
    return next(filter(None, found), "")


def _call_text(value: dict[str, Any]) -> str:
    """Return a call of a tool, empty if the value is not one."""
    name = next((value[key] for key in _NAMES if isinstance(value.get(key), str)), "")
    arguments = next((value[key] for key in _ARGUMENTS if value.get(key) is not None), None)
    if not name or arguments is None:
        return ""
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return f"{name}({arguments})"
