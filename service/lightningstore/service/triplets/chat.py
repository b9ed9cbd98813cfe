"""Messages of prompts and responses in one form, out of the forms of providers and instrumentations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from lightningstore.service.rules.json_values import MAX_MESSAGE_LEVELS
from lightningstore.service.triplets.images import image_url
from lightningstore.service.triplets.values import parsed, write_json
from lightningstore.v1.triplet_pb2 import (
    ChatMessage,
    ChatPart,
    ChatToolCall,
    ChatToolResult,
    Triplet,
)

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "developer": "system",
    "function": "tool",
}
#: What a message may be inside of, beside why it ended and how likely it was.
_WRAPPERS = ("message", "kwargs", "data")
#: Where an object that is not a message has its messages.
_LISTS = ("messages", "choices", "candidates", "generations")
#: Where a message has what it says: the first with something in it counts.
_CONTENTS = ("parts", "content", "contents", "text", "response", "output", "object", "refusal")
_REASONING = ("reasoning_content", "reasoning", "thinking")
_CALLS = ("tool_calls", "toolCalls", "function_call", "functionCall", "tool_call")
_CALL_TYPES = frozenset({"tool_call", "tool-call", "tool_use", "function_call", "server_tool_use"})
_RESULT_TYPES = frozenset(
    {
        "tool_call_response",
        "tool-result",
        "tool_result",
        "function_call_output",
        "web_search_tool_result",
    }
)
_REASONING_TYPES = frozenset({"reasoning", "thinking", "redacted_thinking"})
_TEXT_TYPES = frozenset({"", "text", "input_text", "output_text", "refusal", "summary_text"})
#: Types of the items of OpenAI's Responses, which are no messages: who says them.
_ITEM_ROLES = {
    **dict.fromkeys(_CALL_TYPES, "assistant"),
    **dict.fromkeys(_REASONING_TYPES, "assistant"),
    **dict.fromkeys(_RESULT_TYPES, "tool"),
}
#: Ids of calls. An item of OpenAI's Responses has an id of its own besides.
_IDS = ("call_id", "tool_call_id", "toolCallId", "tool_use_id", "id")
_NAMES = ("name", "toolName", "tool_name")
_ARGUMENTS = ("arguments", "args", "input", "parameters")
_RESULTS = ("response", "result", "content", "output", "text")
_TEXTS = ("text", "content", "refusal", "value")
_THOUGHTS = ("thinking", "reasoning", "text", "content", "summary", "data")


def use_messages(triplet: Triplet) -> None:
    """Set the messages of prompt and response in place of their JSON."""
    prompt, response = triplet.prompt, triplet.response
    prompt.messages.extend(messages_of(_value(prompt.content_json), "user"))
    response.messages.extend(messages_of(_value(response.content_json), "assistant"))
    prompt.content_json = response.content_json = b""
    del prompt.image_urls[:]


def _value(content: bytes) -> Any:
    return msgspec.json.decode(content) if content else None


def messages_of(value: Any, role: str, level: int = 0) -> Iterator[ChatMessage]:
    """Yield the messages in a content. `role`: of messages that do not say who speaks."""
    if value is None or value == "":
        return
    if isinstance(value, list) and level < MAX_MESSAGE_LEVELS:
        for item in value:
            yield from messages_of(item, role, level + 1)
        return
    if isinstance(value, dict) and level < MAX_MESSAGE_LEVELS:
        if numbered := _numbered(value):
            yield from messages_of(numbered, role, level + 1)
            return
        inner = next((value[key] for key in _LISTS if isinstance(value.get(key), list)), None)
        if inner is not None and "role" not in value:
            yield from messages_of(inner, role, level + 1)
            return
        yield _message(value, role, level)
        return
    message = ChatMessage(role=role)
    message.parts.extend(_parts(value, level))
    yield message


def _numbered(value: dict[str, Any]) -> list[Any]:
    """Return the values of a map whose keys are numbers, in their order; empty if it has others."""
    if not value or not all(key.isascii() and key.isdecimal() for key in value):
        return []
    return [value[key] for key in sorted(value, key=lambda key: (len(key), key))]


def _message(value: dict[str, Any], role: str, level: int) -> ChatMessage:
    outer = value
    for _ in range(MAX_MESSAGE_LEVELS):
        if "role" in value:
            break
        inner = next((value[key] for key in _WRAPPERS if isinstance(value.get(key), dict)), None)
        content = value.get("content")
        if inner is None and isinstance(content, dict) and "role" in content:
            inner = content  # a candidate of Gemini
        if inner is None:
            break
        value = inner
    message = ChatMessage(role=_role(value, outer, role), name=_text(value, ("name",)))
    parts = message.parts
    if _kind(value) in _ITEM_ROLES and "role" not in value:
        parts.extend(_part(value, level))
        return message
    for key in _REASONING:
        if text := _plain_text(value.get(key)):
            parts.add(reasoning=text)
            break
    parts.extend(_said(value, level))
    parts.extend(_calls(value))
    _join_results(message, value)
    if not parts and (rest := _rest(value)):
        parts.add(other_json=rest)
    return message


def _kind(value: dict[str, Any]) -> str:
    kind = value.get("type")
    return kind if isinstance(kind, str) else ""


def _role(value: dict[str, Any], outer: dict[str, Any], otherwise: str) -> str:
    """Return who says a message: its role, or the type or the class that LangChain gives it."""
    found = value.get("role") or outer.get("role")
    if not isinstance(found, str) or not found:
        kind = _kind(value) or _kind(outer)
        if kind in _ITEM_ROLES:
            return _ITEM_ROLES[kind]
        names = outer.get("id")
        last = names[-1] if isinstance(names, list) and names else kind
        found = str(last).lower().removesuffix("chunk").removesuffix("message")
        if found not in _ROLES and found not in ("system", "user", "assistant", "tool"):
            return otherwise
    found = found.lower()
    return _ROLES.get(found, found)


def _said(value: dict[str, Any], level: int) -> list[ChatPart]:
    """Return the parts of the first content of a message that says something."""
    for key in _CONTENTS:
        content = value.get(key)
        if isinstance(content, str) and '"type"' in content[:1000]:
            content = _typed(content)
        if isinstance(content, dict) and not isinstance(content.get("type"), str):
            inner = next((content[name] for name in _CONTENTS[:4] if content.get(name)), content)
            content = _numbered(content) or inner
        parts = list(_parts(content, level + 1))
        if parts:
            return parts
    return []


def _typed(text: str) -> Any:
    """Return the parts that a text is the JSON of; the text if it is anything else."""
    value = parsed(text)
    is_list = isinstance(value, list) and value
    return value if is_list and all(isinstance(p, dict) and "type" in p for p in value) else text


def _parts(content: Any, level: int) -> Iterator[ChatPart]:
    if isinstance(content, list) and level < MAX_MESSAGE_LEVELS:
        for item in content:
            yield from _parts(item, level + 1)
    elif isinstance(content, dict):
        yield from _part(content, level)
    elif isinstance(content, str):
        if content:
            yield ChatPart(text=content)
    elif content is not None:
        yield from _other(content)


def _part(part: dict[str, Any], level: int) -> Iterator[ChatPart]:
    """Yield what one part of a message is; a result of a tool may have images beside it."""
    if isinstance(inner := part.get("message_content"), dict) and level < MAX_MESSAGE_LEVELS:
        yield from _part(inner, level + 1)
        return
    kind = _kind(part)
    if kind in _CALL_TYPES or isinstance(part.get("functionCall"), dict):
        yield ChatPart(tool_call=_call(part))
    elif kind in _RESULT_TYPES or isinstance(part.get("functionResponse"), dict):
        yield from _result(part)
    elif kind in _REASONING_TYPES or part.get("thought") is True:
        texts = (_plain_text(part[key]) for key in _THOUGHTS if key in part)
        yield ChatPart(reasoning=next(filter(None, texts), ""))
    elif url := image_url(part):
        yield ChatPart(image_url=url)
    elif kind in _TEXT_TYPES and (text := _text(part, _TEXTS)):
        yield ChatPart(text=text)
    elif kind not in _TEXT_TYPES or not any(key in part for key in _TEXTS):
        yield from _other(part)


def _calls(value: dict[str, Any]) -> Iterator[ChatPart]:
    for key in _CALLS:
        calls = value.get(key)
        if isinstance(calls, dict):
            calls = _numbered(calls) or [calls]
        found = (
            [call for call in calls if isinstance(call, dict)] if isinstance(calls, list) else []
        )
        if found:
            yield from (ChatPart(tool_call=_call(call)) for call in found)
            return


def _call(value: dict[str, Any]) -> ChatToolCall:
    inner = value.get("functionCall", value.get("function"))
    inner = inner if isinstance(inner, dict) else value
    arguments = next((inner[key] for key in _ARGUMENTS if inner.get(key) is not None), "")
    return ChatToolCall(
        id=_text(value, _IDS) or _text(inner, _IDS),
        name=_text(inner, _NAMES) or _text(value, _NAMES),
        arguments=_written(arguments),
    )


def _result(part: dict[str, Any]) -> Iterator[ChatPart]:
    inner = part.get("functionResponse", part)
    inner = inner if isinstance(inner, dict) else part
    content = next((inner[key] for key in _RESULTS if inner.get(key) is not None), "")
    result = ChatToolResult(id=_text(inner, _IDS), name=_text(inner, _NAMES))
    images: list[str] = []
    if isinstance(content, list):
        images = [url for item in content if isinstance(item, dict) and (url := image_url(item))]
        content = [
            item for item in content if not (images and isinstance(item, dict) and image_url(item))
        ]
    result.content = _plain_text(content) or (_written(content) if content else "")
    yield ChatPart(tool_result=result)
    yield from (ChatPart(image_url=url) for url in images)


def _join_results(message: ChatMessage, value: dict[str, Any]) -> None:
    """Make a result of what a tool says, and a tool the speaker of results alone."""
    parts = message.parts
    kinds = [part.WhichOneof("part") for part in parts]
    if kinds and all(kind == "tool_result" for kind in kinds):
        message.role = "tool"
        return
    if message.role != "tool" or "tool_result" in kinds:
        return
    texts = [part.text for part in parts if part.WhichOneof("part") == "text"]
    others = [part for part in parts if part.WhichOneof("part") != "text"]
    result = ChatToolResult(
        id=_text(value, _IDS), name=_text(value, _NAMES), content="\n".join(texts)
    )
    message.name = ""
    del parts[:]
    parts.append(ChatPart(tool_result=result))
    parts.extend(others)


def _plain_text(value: Any, level: int = 0) -> str:
    """Return the text in a value that holds nothing else, empty if it holds other things."""
    if isinstance(value, str):
        return value
    if level > MAX_MESSAGE_LEVELS:
        return ""
    if isinstance(value, dict) and _kind(value) in _TEXT_TYPES | _REASONING_TYPES:
        return next(
            filter(None, (_plain_text(value[k], level + 1) for k in _THOUGHTS if k in value)), ""
        )
    if isinstance(value, list):
        texts = [_plain_text(item, level + 1) for item in value]
        return "\n".join(texts) if all(texts) else ""
    return ""


def _text(value: dict[str, Any], keys: Iterable[str]) -> str:
    for key in keys:
        found = value.get(key)
        if isinstance(found, dict):  # {"value": …, "annotations": […]}
            found = found.get("value")
        if isinstance(found, str) and found:
            return found
    return ""


def _written(value: Any) -> str:
    return value if isinstance(value, str) else (write_json(value) or b"").decode()


def _other(value: Any) -> Iterator[ChatPart]:
    if written := write_json(value):
        yield ChatPart(other_json=written)


#: Keys of a message that say nothing by themselves.
_HOLLOW = frozenset({"role", "finish_reason", "type", "index", "id", "name", "tool_call_id"})


def _rest(value: dict[str, Any]) -> bytes:
    """Return a message that has no content in a known place, empty if there is nothing in it."""
    rest = {key: inner for key, inner in value.items() if key not in _HOLLOW and inner}
    return (write_json(rest) or b"") if rest else b""
