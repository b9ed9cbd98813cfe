"""The agent of `lightningstore demo`: answers questions about numbers, and calls a calculator if its policy says so.

Its model is three numbers. Its spans are those of any agent: OpenTelemetry's conventions for GenAI, with the token ids
and log-probabilities that a trainer needs.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import zlib
from collections.abc import Mapping
from typing import Any

from lightningstore.client import NonRetryable, RunContext
from opentelemetry.trace import Tracer

#: The first word of an answer, which training makes more or less likely, and how often such an answer is right.
WAYS = {"Guess:": 0.1, "Think:": 0.4, "Calculate:": 0.9}
MODEL = "demo-1"
_TOOLS = json.dumps(
    [{"type": "function", "name": "calculator", "parameters": {"expression": "string"}}]
)
#: Seconds that a stuck agent sleeps, unless its attempt times out.
_STUCK_SECONDS = 600

Message = dict[str, Any]


def probabilities(weights: Mapping[str, float]) -> dict[str, float]:
    """Return how likely each first word is with some weights."""
    exponentials = {way: math.exp(weights[way]) for way in WAYS}
    return {way: value / sum(exponentials.values()) for way, value in exponentials.items()}


def token_id(word: str) -> int:
    """Return the id of a token; each word is one."""
    return zlib.crc32(word.encode()) % 50_000


class Agent:
    """Answers questions. Each call of its model takes `pause` seconds on average."""

    def __init__(self, seed: str, pause: float) -> None:
        self._random = random.Random(seed)  # noqa: S311  (no secret)
        self._pause = pause

    async def answer(
        self, task: Any, resources: Mapping[str, Any], tracer: Tracer, context: RunContext
    ) -> float:
        """Answer a question; the reward is 1 for the right number, and up to a half for one that is close."""
        names = {"gen_ai.operation.name": "invoke_agent", "gen_ai.agent.name": "solver"}
        with tracer.start_as_current_span("invoke_agent solver", attributes=names):
            await _suffer(task, context)
            prompt, chances = (
                resources["prompt"].template,
                probabilities(resources["weights"].value),
            )
            expression, right = task["expression"], task["answer"]
            (way,) = self._random.choices(list(chances), list(chances.values()))
            # A longer prompt prevents mistakes.
            chance = WAYS[way] ** (4 / (3 + len(prompt.splitlines())))
            wrong = round(right * self._random.uniform(0.4, 1.6)) + 1
            number = right if self._random.random() < chance else wrong
            chat = [_message("system", prompt), _message("user", f"What is {expression}?")]
            parts: list[Message] = [
                {"type": "reasoning", "content": f"{way} is {expression} near {wrong} ?"}
            ]
            logprob = math.log(chances[way])
            if way == "Calculate:":
                call = {"type": "tool_call", "id": "call-1", "name": "calculator"}
                parts.append({**call, "arguments": {"expression": expression}})
                await self._generate(tracer, chat, parts, logprob)
                chat.append(_calculate(tracer, parts[-1], str(number)))
                parts, logprob = [], -0.01
            parts.append({"type": "text", "content": f"It is {number} ."})
            await self._generate(tracer, chat, parts, logprob)
            return 1.0 if number == right else max(0.0, 1 - abs(number - right) / right) / 2

    async def _generate(
        self, tracer: Tracer, chat: list[Message], parts: list[Message], logprob: float
    ) -> None:
        """Add a message of the model to the conversation; `logprob` is that of its first token."""
        prompt, answer = list(chat), {"role": "assistant", "parts": parts}
        finish = "tool_call" if parts[-1]["type"] == "tool_call" else "stop"
        with tracer.start_as_current_span(f"chat {MODEL}") as span:
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._pause)
            read, written = _words(prompt), _words([answer])
            logprobs = [logprob, *(-0.3 * self._random.random() for _ in written[1:])]
            pairs = zip(written, logprobs, strict=True)
            attributes: dict[str, Any] = {
                "gen_ai.operation.name": "chat",
                "gen_ai.request.model": MODEL,
                "gen_ai.response.id": f"{self._random.getrandbits(64):016x}",
                "gen_ai.response.finish_reasons": [finish],
                "gen_ai.usage.input_tokens": len(read),
                "gen_ai.usage.output_tokens": len(written),
                "gen_ai.tool.definitions": _TOOLS,
                "gen_ai.input.messages": json.dumps(prompt),
                "gen_ai.output.messages": json.dumps([{**answer, "finish_reason": finish}]),
                "prompt_token_ids": [token_id(word) for word in read],
                "response_token_ids": [token_id(word) for word in written],
                "logprobs.content": json.dumps([{"token": w, "logprob": p} for w, p in pairs]),
            }
            span.set_attributes(attributes)
        chat.append(answer)


def _calculate(tracer: Tracer, call: Message, result: str) -> Message:
    """Return the message with the result of the calculator."""
    attributes = {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": call["name"],
        "gen_ai.tool.call.id": call["id"],
        "gen_ai.tool.call.arguments": json.dumps(call["arguments"]),
        "gen_ai.tool.call.result": result,
    }
    with tracer.start_as_current_span("execute_tool calculator", attributes=attributes):
        part = {"type": "tool_call_response", "id": call["id"], "response": result}
        return {"role": "tool", "parts": [part]}


async def _suffer(task: Any, context: RunContext) -> None:
    """Fail as agents do, where the task says so."""
    if task["trouble"] == "unreadable":
        raise NonRetryable("the task cannot be read")
    if task["trouble"] == "stuck":
        await asyncio.sleep(_STUCK_SECONDS)
    if task["trouble"] == "connection" and context.attempt.sequence_number == 1:
        raise ConnectionError("the model server closed the connection")


def _message(role: str, text: str) -> Message:
    return {"role": role, "parts": [{"type": "text", "content": text}]}


def _words(messages: list[Message]) -> list[str]:
    """Return the words of messages, with what tools were called with and returned."""
    parts = [part for message in messages for part in message["parts"]]
    texts = [p.get("content") or p.get("response") or p["arguments"]["expression"] for p in parts]
    return " ".join(texts).split()
