"""Messages in one form, out of the forms of providers and instrumentations."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from lightningstore.service.triplets.chat import messages_of
from lightningstore.v1.triplet_pb2 import ChatMessage

from tests.recorded import STACKS, spans
from tests.traces import extract

PNG = "data:image/png;base64,iVBORw0KGgo="


def seen(content: Any, role: str = "user") -> list[tuple[Any, ...]]:
    """Return messages as a role, then each part as its kind and what is in it."""
    return [(message.role, *map(_part, message.parts)) for message in messages_of(content, role)]


def _part(part: Any) -> tuple[Any, ...]:
    kind = part.WhichOneof("part")
    value = getattr(part, kind)
    if kind == "tool_call":
        return ("call", value.id, value.name, json.loads(value.arguments))
    if kind == "tool_result":
        return ("result", value.id, value.name, value.content)
    return (kind, json.loads(value) if kind == "other_json" else value)


CALL = ("call", "c1", "get_weather", {"city": "Paris"})
ARGUMENTS = '{"city": "Paris"}'
FUNCTION = {"name": "get_weather", "arguments": ARGUMENTS}
#: Content, and what is seen of it.
FORMS: list[tuple[Any, list[tuple[Any, ...]]]] = [
    ("Hello", [("user", ("text", "Hello"))]),
    (None, []),
    ([], []),
    ("", []),
    (["one", "two"], [("user", ("text", "one")), ("user", ("text", "two"))]),
    # OpenAI, chat.
    (
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": PNG}}]},
            {"role": "assistant", "content": None, "reasoning_content": "Hm.", "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
            {"role": "assistant", "refusal": "No."},
        ],
        [
            ("system", ("text", "Be brief.")),
            ("user", ("text", "What is it?"), ("image_url", PNG)),
            ("assistant", ("reasoning", "Hm."), CALL),
            ("tool", ("result", "c1", "", "sunny")),
            ("assistant", ("text", "No.")),
        ],
    ),
    ({"choices": [{"index": 0, "message": {"role": "assistant", "content": "A"}}]}, [("assistant", ("text", "A"))]),
    ([{"role": "assistant", "function_call": FUNCTION}], [("assistant", ("call", "", "get_weather", {"city": "Paris"}))]),
    # OpenAI, Responses.
    (
        [
            {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "Hm."}]},
            {"type": "function_call", "id": "f", "call_id": "c1", "name": "get_weather", "arguments": ARGUMENTS},
            {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is sunny."}]},
        ],
        [
            ("assistant", ("reasoning", "Hm.")),
            CALL_MESSAGE := ("assistant", CALL),
            ("tool", ("result", "c1", "", "sunny")),
            ("assistant", ("text", "It is sunny.")),
        ],
    ),
    # Anthropic.
    (
        [
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "tool_use", "id": "c1", "name": "get_weather", "input": {"city": "Paris"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": [{"type": "text", "text": "sunny"}]}]},
            {"role": "user", "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}]},
        ],
        [
            ("assistant", ("reasoning", "Hm."), CALL),
            ("tool", ("result", "c1", "", "sunny")),
            ("user", ("image_url", PNG)),
        ],
    ),
    # Gemini.
    (
        {"candidates": [{"content": {"role": "model", "parts": [{"text": "Hm.", "thought": True}, {"functionCall": {"id": "c1", "name": "get_weather", "args": {"city": "Paris"}}}]}}]},
        [("assistant", ("reasoning", "Hm."), CALL)],
    ),
    (
        [{"role": "user", "parts": [{"functionResponse": {"name": "get_weather", "response": {"sky": "sunny"}}}]}],
        [("tool", ("result", "", "get_weather", '{"sky":"sunny"}'))],
    ),
    # LangChain.
    (
        [[{"lc": 1, "type": "constructor", "id": ["langchain", "schema", "HumanMessage"], "kwargs": {"content": "Hi", "type": "human"}}]],
        [("user", ("text", "Hi"))],
    ),
    ([{"type": "ai", "data": {"content": "", "tool_calls": [{"id": "c1", "name": "get_weather", "args": {"city": "Paris"}}]}}], [CALL_MESSAGE]),
    ({"generations": [[{"text": "Yes"}]]}, [("user", ("text", "Yes"))]),
    # The Vercel AI SDK.
    (
        [
            {"role": "assistant", "content": [{"type": "tool-call", "toolCallId": "c1", "toolName": "get_weather", "args": {"city": "Paris"}}]},
            {"role": "tool", "content": [{"type": "tool-result", "toolCallId": "c1", "toolName": "get_weather", "result": "sunny"}]},
        ],
        [CALL_MESSAGE, ("tool", ("result", "c1", "get_weather", "sunny"))],
    ),
    # OpenTelemetry's conventions and OpenInference.
    (
        [
            {"role": "assistant", "parts": [{"type": "reasoning", "content": "Hm."}, {"type": "tool_call", "id": "c1", "name": "get_weather", "arguments": {"city": "Paris"}}]},
            {"role": "user", "parts": [{"type": "tool_call_response", "id": "c1", "response": "sunny"}]},
            {"role": "user", "contents": [{"message_content": {"type": "text", "text": "Hi"}}]},
        ],
        [("assistant", ("reasoning", "Hm."), CALL), ("tool", ("result", "c1", "", "sunny")), ("user", ("text", "Hi"))],
    ),
    ({"0": {"role": "system", "content": "A"}, "10": {"role": "user", "content": "C"}, "2": {"role": "user", "content": "B"}},
     [("system", ("text", "A")), ("user", ("text", "B")), ("user", ("text", "C"))]),
    # What is in no known place is not lost.
    ([{"role": "critic", "verdict": 3}], [("critic", ("other_json", {"verdict": 3}))]),
    ([{"role": "user", "content": [{"type": "audio", "data": "x"}, 7]}], [("user", ("other_json", {"type": "audio", "data": "x"}), ("other_json", 7))]),
    ([{"role": {"a": 1}, "type": [2], "content": "still text"}], [("user", ("text", "still text"))]),
]  # fmt: skip


@pytest.mark.parametrize(("content", "messages"), FORMS)
def test_form_of_a_provider(content: Any, messages: list[tuple[Any, ...]]) -> None:
    assert seen(content) == messages


@pytest.mark.parametrize("stack", sorted(set(STACKS) - {"autogen-native"}))
def test_stacks_agree(stack: str) -> None:
    first, second = extract(spans(stack))
    asked = seen(first.prompt)
    assert asked == [
        ("system", ("text", "You are a weather agent")),
        ("user", ("text", "How is the weather in Paris")),
    ]
    (called,) = seen(first.response, "assistant")
    assert called[0] == "assistant"
    assert called[1][2:] == ("get_weather", {"city": "Paris"})
    again = seen(second.prompt)
    assert again[:2] == asked
    assert again[2][1][2:] == called[1][2:]
    assert again[3][0] == "tool"
    assert "sunny" in again[3][1][3]
    if second.response is not None:
        text = ("text", "It is sunny in Paris today")
        assert seen(second.response, "assistant") == [("assistant", text)]


def test_every_json_value_gives_messages() -> None:
    chance = random.Random(3)
    words = [
        *("role", "content", "parts", "type", "text", "tool_calls", "function", "message", "thinking"),
        *("tool_result", "tool_use", "image", "source", "url", "0", "1", "messages", "id", "functionCall"),
    ]  # fmt: skip

    def value(level: int) -> Any:
        kind = chance.randrange(8 if level < 6 else 4)
        if kind < 4:
            return (chance.choice(words), chance.random(), None, True)[kind]
        if kind < 6:
            return [value(level + 1) for _ in range(chance.randrange(4))]
        return {chance.choice(words): value(level + 1) for _ in range(chance.randrange(5))}

    for _ in range(3000):
        for message in messages_of(value(0), "user"):
            written = ChatMessage.FromString(message.SerializeToString())
            assert MessageToDict(written) == MessageToDict(message)


def test_deep_content_is_one_part() -> None:
    content: Any = "deep"
    for _ in range(60):
        content = [content]
    (message,) = messages_of(content, "user")
    assert message.parts[0].WhichOneof("part") in ("text", "other_json")
