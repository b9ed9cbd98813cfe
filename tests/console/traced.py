"""Rollouts with traces, as agents leave them."""

from __future__ import annotations

import json
from typing import Any

from lightningstore.client import LightningStore
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.recorded import spans
from tests.traces import any_value, span, span_id

SYSTEM = {"role": "system", "content": "You are a careful agent."}


def claimed(store: LightningStore, rollout_id: str, value: Any = "a question") -> str:
    """Enqueue a rollout and claim it; return the id of its attempt."""
    store.enqueue_rollout(value, rollout_id=rollout_id, labels={"suite": "console"})
    rollout = store.start_attempt(rollout_id, worker_id="gpu-7")
    assert rollout.latest_attempt is not None
    return rollout.latest_attempt.attempt_id


def add(store: LightningStore, rollout_id: str, *added: Span) -> None:
    """Add spans to the latest attempt."""
    store.add_spans(SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=added))


def recorded(store: LightningStore, stack: str) -> str:
    """Store a recorded trace as a rollout that has succeeded; return its id."""
    claimed(store, stack)
    add(store, stack, *(one for _, one in spans(stack)))
    store.update_attempt(stack, "latest", status="succeeded")
    return stack


def call(
    word: str, asked: list[Any], answer: Any, start: float, parent: str = "", **more: Any
) -> Span:
    """Return the span of a call of a model."""
    attributes = {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": word,
        "gen_ai.input.messages": json.dumps(asked),
        "gen_ai.output.messages": json.dumps([answer]),
        **more,
    }
    return span(word, f"chat {word}", parent, (start, start + 0.5), attributes)


def sampled(word: str, asked: list[int], answered: list[int], logprobs: list[float]) -> Span:
    """Return the span of a call with token ids and log-probabilities."""
    listed = [
        {"token": str(token), "logprob": p} for token, p in zip(answered, logprobs, strict=True)
    ]
    return call(
        word,
        [user("Count")],
        assistant("Counted"),
        1,
        prompt_token_ids=asked,
        response_token_ids=answered,
        **{"logprobs.content": json.dumps(listed)},
    )


def plain(word: str, name: str, start: float, end: float, parent: str = "") -> Span:
    """Return a span without attributes."""
    return span(word, name, parent, (start, end), {})


def failed(word: str, start: float, parent: str = "") -> Span:
    """Return the span of a tool that raised an exception."""
    found = plain(word, "execute_tool search", start, start + 0.2, parent)
    found.status.code = 2
    found.status.message = "the search did not answer"
    event = found.events.add(name="exception", time_unix_nano=found.end_time_unix_nano)
    for key, text in (
        ("exception.type", "TimeoutError"),
        ("exception.message", "no answer within 5 s"),
        ("exception.stacktrace", "Traceback (most recent call last):\n  search()"),
    ):
        event.attributes.add(key=key).value.CopyFrom(any_value(text))
    found.links.add(trace_id=bytes(range(1, 17)), span_id=span_id("elsewhere"))
    return found


def user(text: str) -> dict[str, Any]:
    """Return a message of a user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """Return an answer."""
    return {"role": "assistant", "content": text}
