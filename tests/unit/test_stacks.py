"""Triplets of what agent stacks send by default, without options: recorded traces, and shapes made after them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import AttemptTriplets
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests import recorded
from tests.shapes import ASKED, SHAPES, SYSTEM
from tests.traces import extract, span

DOCS = Path(__file__).parents[2] / "docs" / "triplets.md"


def of(*spans: Span, **options: Any) -> AttemptTriplets:
    return extract(list(enumerate(spans, 1)), **options)


# Recorded


@pytest.mark.parametrize("stack", [s for s in recorded.STACKS if s != "autogen-native"])
def test_a_recorded_trace_gives_two_triplets(stack: str) -> None:
    found = extract(recorded.spans(stack))
    assert len(found) == 2
    for triplet in found:
        assert SYSTEM in json.dumps(triplet.prompt)
        assert ASKED in json.dumps(triplet.prompt)
    assert "get_weather" in json.dumps(found[0].response)
    assert [triplet.reward for triplet in found] == [None, 0.8]
    assert found.warnings == []


def test_a_trace_without_calls_says_what_it_has() -> None:
    found = extract(recorded.spans("autogen-native"))
    assert found == []
    ((_, message),) = found.warnings
    assert "invoke_agent weather_agent" in message
    assert "gen_ai.operation.name" in message


def test_the_table_in_the_docs_is_what_is_derived() -> None:
    assert recorded.table() in DOCS.read_text(), "python -m tests.recorded prints the table"


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_gives_prompt_tools_and_tool_call(shape: str) -> None:
    (triplet,) = found = of(SHAPES[shape])
    assert isinstance(triplet.prompt, list)
    assert SYSTEM in json.dumps(triplet.prompt[0])
    assert ASKED in json.dumps(triplet.prompt)
    assert json.dumps(triplet.prompt).count(SYSTEM) == 1
    assert "get_weather" in json.dumps(triplet.response)
    assert [tool["name"] for tool in triplet.tools] == ["get_weather"]
    assert found.warnings == []


@pytest.mark.parametrize(
    "attributes",
    [
        {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.input.messages": "[]",
            "gen_ai.output.messages": "[]",
        },
        {"openinference.span.kind": "CHAIN", "llm.input_messages.0.message.content": "x"},
        {"openinference.span.kind": "TOOL", "input.value": "x", "output.value": "y"},
        {"ai.operationId": "ai.generateText", "ai.prompt": "{}", "ai.response.text": "x"},
        {
            "gen_ai.operation.name": "embeddings",
            "gen_ai.request.model": "m",
            "gen_ai.usage.input_tokens": 3,
        },
        {"langsmith.span.kind": "chain", "gen_ai.prompt": "x", "gen_ai.completion": "y"},
        {"gen_ai.tool.name": "get_weather", "gen_ai.request.model": "m", "gen_ai.response.id": "x"},
        {"http.request.method": "POST", "http.response.status_code": 200},
    ],
    ids=lambda attributes: next(iter(attributes.values())),
)
def test_what_is_no_call_of_a_model_gives_no_triplet(attributes: dict[str, Any]) -> None:
    assert of(span("a", "chat", attributes=attributes)) == []


def test_the_name_decides_where_the_attributes_do_not() -> None:
    assert len(of(span("a", "openai.chat.completion"))) == 1
    assert (
        len(of(span("a", "openai.chat.completion", attributes={"openinference.span.kind": "TOOL"})))
        == 0
    )


def test_a_pattern_for_names_is_the_only_thing_that_counts() -> None:
    spans = [SHAPES["vercel"], span("x", "my call")]
    assert [t.span_id for t in of(*spans, llm_call_match="^my call$")] == [spans[1].span_id.hex()]


# Agents


@pytest.mark.parametrize(
    ("name", "attributes", "agent"),
    [
        ("invoke_agent planner", {"gen_ai.operation.name": "invoke_agent"}, "planner"),
        ("planner.agent", {"traceloop.span.kind": "agent"}, "planner"),
        ("run", {"traceloop.span.kind": "agent", "traceloop.entity.name": "planner"}, "planner"),
        (
            "Agent._execute_core",
            {"openinference.span.kind": "AGENT", "graph.node.id": "planner"},
            "planner",
        ),
        ("planner", {"openinference.span.kind": "AGENT"}, "planner"),
        ("planner_agent", {}, "planner_agent"),
        ("plan", {}, "*"),
    ],
)
def test_an_agent_is_known_by_its_attributes_and_by_its_name_last(
    name: str, attributes: dict[str, Any], agent: str
) -> None:
    call = span("c", "chat", "a", (2, 3), {"gen_ai.operation.name": "chat"})
    (triplet,) = of(span("a", name, "", (1, 4), attributes), call)
    assert triplet.agent_name == agent


def test_an_agent_that_only_a_name_tells_of_gives_way_to_any_other() -> None:
    chat = {"gen_ai.operation.name": "chat"}
    spans = [
        span("outer", "solver", "", (1, 9), {"agent.name": "solver"}),
        span("inner", "helper_agent", "outer", (2, 8)),
        span("c", "chat", "inner", (3, 4), chat),
        span("own", "chat", "inner", (5, 6), {**chat, "gen_ai.agent.name": "writer"}),
    ]
    assert [t.agent_name for t in of(*spans)] == ["solver", "writer"]
    assert [t.agent_name for t in of(*spans, agent_match="writer")] == ["writer"]
    assert of(*spans, agent_match="helper_agent") == []
