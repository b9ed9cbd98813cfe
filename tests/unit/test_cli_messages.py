"""Messages of a model as a line of text, in the forms of many stacks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from lightningstore.service.cli.messages import last_text

ARGUMENTS = '{"city": "Paris"}'
CALLED = f"get_weather({ARGUMENTS})"


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"role": "user", "content": "Hello\n there"}, "Hello there"),
        ({"role": "user", "parts": [{"type": "text", "content": "Hello"}]}, "Hello"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]}, "a b"),
        ({"role": "user", "contents": {"0": 1, "text": "Hello"}}, "Hello"),
        ({"id": ["langchain"], "kwargs": {"content": "Hello"}}, "Hello"),
        ({"message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}, "Hello"),
        (
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"function": {"name": "get_weather", "arguments": ARGUMENTS}}],
            },
            CALLED,
        ),
        (
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [{"function": {"name": "get_weather", "arguments": ARGUMENTS}}],
            },
            f"Let me see. {CALLED}",
        ),
        (
            {
                "role": "assistant",
                "parts": [
                    {"type": "tool_call", "name": "get_weather", "arguments": {"city": "Paris"}}
                ],
            },
            CALLED,
        ),
        (
            {"content": [{"type": "tool_use", "name": "get_weather", "input": {"city": "Paris"}}]},
            CALLED,
        ),
        (
            {"parts": [{"functionCall": {"name": "get_weather", "args": {"city": "Paris"}}}]},
            CALLED,
        ),
        ({"role": "tool", "parts": [{"type": "tool_call_response", "response": "sunny"}]}, "sunny"),
        ({"odd": 1}, '{"odd": 1}'),
        ("plain", "plain"),
    ],
    ids=str,
)
def test_last_message_is_shown_by_what_it_says(message: Any, text: str) -> None:
    assert last_text(json.dumps(["first", message]).encode()) == text
    assert last_text(json.dumps(message).encode()) == text


def test_nothing_is_an_empty_text() -> None:
    assert last_text(b"") == ""


def test_messages_of_any_depth_are_shown() -> None:
    assert last_text(b'{"content":' * 500 + b"1" + b"}" * 500).startswith("{")
