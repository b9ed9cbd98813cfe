"""Calls of a model as agent stacks write them: each with a tool call in its answer."""

from __future__ import annotations

import json
from typing import Any

from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.traces import any_value, span

ASKED = "How is the weather in Paris"
SYSTEM = "You are a weather agent"
USER = {"role": "user", "content": ASKED}
TOOL = {"name": "get_weather", "parameters": {"type": "object"}}
ARGUMENTS = '{"city": "Paris"}'
PARTS = [{"role": "user", "parts": [{"type": "text", "content": ASKED}]}]
CALLED = [
    {"role": "assistant", "parts": [{"type": "tool_call", "name": "get_weather", "arguments": {}}]}
]


def with_events(one: Span, *events: tuple[str, dict[str, Any]]) -> Span:
    for name, attributes in events:
        event = one.events.add(name=name)
        for key, value in attributes.items():
            event.attributes.add(key=key).value.CopyFrom(any_value(value))
    return one


SHAPES: dict[str, Span] = {
    "vercel": span(
        "c",
        "ai.generateText.doGenerate",
        attributes={
            "ai.operationId": "ai.generateText.doGenerate",
            "ai.model.id": "m",
            "ai.prompt.messages": json.dumps([{"role": "system", "content": SYSTEM}, USER]),
            "ai.prompt.tools": [json.dumps({"type": "function", **TOOL})],
            "ai.response.text": "",
            "ai.response.toolCalls": json.dumps([{"toolName": "get_weather", "input": ARGUMENTS}]),
            "ai.usage.inputTokens": 11,
            "ai.usage.outputTokens": 3,
        },
    ),
    "langsmith": span(
        "c",
        "ChatOpenAI",
        attributes={
            "langsmith.span.kind": "llm",
            "gen_ai.prompt": json.dumps(
                {"messages": [[{"type": "system", "content": SYSTEM}, USER]], "tools": [TOOL]}
            ),
            "gen_ai.completion": json.dumps(
                {
                    "generations": [
                        [{"text": "", "message": {"tool_calls": [{"name": "get_weather"}]}}]
                    ]
                }
            ),
        },
    ),
    "mlflow": span(
        "c",
        "Completions",
        attributes={
            "mlflow.spanType": '"CHAT_MODEL"',
            "mlflow.spanInputs": json.dumps(
                {"messages": [{"role": "system", "content": SYSTEM}, USER], "tools": [TOOL]}
            ),
            "mlflow.spanOutputs": json.dumps(
                {"choices": [{"message": {"tool_calls": [{"function": {"name": "get_weather"}}]}}]}
            ),
        },
    ),
    "langfuse": span(
        "c",
        "OpenAI-generation",
        attributes={
            "langfuse.observation.type": "generation",
            "langfuse.observation.model.name": "m",
            "langfuse.observation.input": json.dumps(
                {"messages": [{"role": "system", "content": SYSTEM}, USER], "tools": [TOOL]}
            ),
            "langfuse.observation.output": json.dumps(
                {"role": "assistant", "tool_calls": [{"function": {"name": "get_weather"}}]}
            ),
        },
    ),
    "genkit": span(
        "c",
        "googleai/gemini",
        attributes={
            "genkit:type": "action",
            "genkit:metadata:subtype": "model",
            "genkit:input": json.dumps(
                {
                    "messages": [
                        {"role": "system", "content": [{"text": SYSTEM}]},
                        {"role": "user", "content": [{"text": ASKED}]},
                    ],
                    "tools": [TOOL],
                }
            ),
            "genkit:output": json.dumps(
                {
                    "message": {
                        "role": "model",
                        "content": [{"toolRequest": {"name": "get_weather"}}],
                    }
                }
            ),
        },
    ),
    "logfire": span(
        "c",
        "Chat Completion with {request_data[model]!r}",
        attributes={
            "gen_ai.request.model": "m",
            "gen_ai.usage.input_tokens": 11,
            "request_data": json.dumps(
                {
                    "model": "m",
                    "messages": [{"role": "system", "content": SYSTEM}, USER],
                    "tools": [TOOL],
                }
            ),
            "response_data": json.dumps(
                {
                    "message": {
                        "role": "assistant",
                        "tool_calls": [{"function": {"name": "get_weather"}}],
                    }
                }
            ),
        },
    ),
    "braintrust": span(
        "c",
        "Chat Completion",
        attributes={
            "braintrust.span_attributes": '{"name": "Chat Completion", "type": "llm"}',
            "braintrust.input_json": json.dumps([{"role": "system", "content": SYSTEM}, USER]),
            "braintrust.tools_json": "",
            "llm.tools": json.dumps([TOOL]),
            "braintrust.output_json": json.dumps(
                [{"message": {"tool_calls": [{"function": {"name": "get_weather"}}]}}]
            ),
        },
    ),
    "a company's own": span(
        "c",
        "POST /v1/messages",
        attributes={
            "acme.llm.operation.name": "messages",
            "acme.llm.request.body": json.dumps(
                {"system": SYSTEM, "messages": [USER], "tools": [TOOL]}
            ),
            "acme.llm.response.body": json.dumps(
                {"content": [{"type": "tool_use", "name": "get_weather", "input": {}}]}
            ),
        },
    ),
    "anthropic by OpenInference": span(
        "c",
        "Messages",
        attributes={
            "openinference.span.kind": "LLM",
            "input.value": json.dumps({"system": SYSTEM, "messages": [USER], "tools": [TOOL]}),
            "output.value": json.dumps(
                {"content": [{"type": "tool_use", "name": "get_weather", "input": {}}]}
            ),
        },
    ),
    "OpenLLMetry before 2025": span(
        "c",
        "anthropic.chat",
        attributes={
            "llm.request.type": "chat",
            "gen_ai.prompt.0.role": "system",
            "gen_ai.prompt.0.content": SYSTEM,
            "gen_ai.prompt.1.role": "user",
            "gen_ai.prompt.1.content": ASKED,
            "llm.request.functions.0.name": "get_weather",
            "gen_ai.completion.0.role": "assistant",
            "gen_ai.completion.0.tool_calls.0.name": "get_weather",
        },
    ),
    "conventions of 2025": span(
        "c",
        "chat m",
        attributes={
            "gen_ai.operation.name": "chat",
            "gen_ai.system_instructions": json.dumps([{"type": "text", "content": SYSTEM}]),
            "gen_ai.input.messages": json.dumps(PARTS),
            "gen_ai.tool.definitions": json.dumps([TOOL]),
            "gen_ai.output.messages": json.dumps(CALLED),
        },
    ),
    "structured attributes": span(
        "c",
        "generate_content gemini",
        attributes={
            "gen_ai.operation.name": "generate_content",
            "gen_ai.system_instructions": [{"type": "text", "content": SYSTEM}],
            "gen_ai.input.messages": PARTS,
            "gen_ai.tool.definitions": [TOOL],
            "gen_ai.output.messages": CALLED,
        },
    ),
    "one event with all": with_events(
        span("c", "chat m", attributes={"gen_ai.operation.name": "chat"}),
        (
            "gen_ai.client.inference.operation.details",
            {
                "gen_ai.system_instructions": json.dumps([{"type": "text", "content": SYSTEM}]),
                "gen_ai.input.messages": json.dumps(PARTS),
                "gen_ai.tool.definitions": json.dumps([TOOL]),
                "gen_ai.output.messages": json.dumps(CALLED),
            },
        ),
    ),
    "an event a message": with_events(
        span("c", "chat m", attributes={"gen_ai.request.tools": json.dumps([TOOL])}),
        ("gen_ai.system.message", {"content": SYSTEM}),
        ("gen_ai.user.message", {"gen_ai.event.content": json.dumps(USER)}),
        (
            "gen_ai.choice",
            {"index": 0, "tool_calls": json.dumps([{"function": {"name": "get_weather"}}])},
        ),
    ),
    "events as a log": span(
        "c",
        "chat m",
        attributes={
            "gen_ai.operation.name": "chat",
            "model_request_parameters": json.dumps({"function_tools": [TOOL]}),
            "events": json.dumps(
                [
                    {"event.name": "gen_ai.system.message", "content": SYSTEM, "role": "system"},
                    {"event.name": "gen_ai.user.message", "content": ASKED, "role": "user"},
                    {
                        "event.name": "gen_ai.choice",
                        "index": 0,
                        "message": {"tool_calls": [{"function": {"name": "get_weather"}}]},
                    },
                ]
            ),
        },
    ),
    "raw request of a proxy": span(
        "c",
        "raw_gen_ai_request",
        attributes={
            "llm.openai.messages": str([{"role": "system", "content": SYSTEM}, USER]),
            "llm.openai.tools": str([TOOL]),
            "llm.openai.choices": str(
                [
                    {
                        "message": {"tool_calls": [{"function": {"name": "get_weather"}}]},
                        "logprobs": None,
                    }
                ]
            ),
        },
    ),
}
