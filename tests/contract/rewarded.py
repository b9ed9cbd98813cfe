"""Attempts with rewards and scores, and spans that hold rewards."""

from __future__ import annotations

from typing import Any

from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.contract.conftest import World
from tests.contract.helpers import claim


def traced(number: int, name: str = "s", start: int = 0, **attributes: Any) -> Span:
    """Return a span; with these attributes."""
    span = Span(
        trace_id=b"t" * 16,
        span_id=number.to_bytes(8, "big"),
        name=name,
        start_time_unix_nano=start or number,
    )
    for key, value in attributes.items():
        text = isinstance(value, str)
        found = AnyValue(string_value=value) if text else AnyValue(double_value=value)
        span.attributes.append(KeyValue(key=key, value=found))
    return span


def reward_span(number: int, value: float, start: int = 0) -> Span:
    """Return a span as emit_reward writes it."""
    keys = {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": value,
        "agentlightning.reward.1.name": "style",
        "agentlightning.reward.1.value": 100.0,
    }
    return traced(number, "agentlightning.annotation", start, **keys)


async def add(world: World, attempt: Any, *spans: Span, numbers: tuple[int, ...] = ()) -> None:
    """Add spans to an attempt."""
    batch = SpanBatch(
        rollout_id=attempt.rollout_id,
        attempt_id=attempt.attempt_id,
        spans=spans,
        sequence_ids=numbers,
    )
    await world.store.add_spans(batch)


async def stored(world: World, attempt: Any) -> Attempt:
    """Return the record of an attempt."""
    return (await world.store.get_attempt(attempt.rollout_id, attempt.attempt_id)).message


async def scored(world: World, *rewards: float | None) -> list[str]:
    """Finish a rollout for each reward; returns their ids."""
    ids = []
    for reward in rewards:
        _, attempt = await claim(world)
        options = {} if reward is None else {"reward": reward}
        await world.store.update_attempt(
            attempt.rollout_id, attempt.attempt_id, status="succeeded", **options
        )
        ids.append(attempt.rollout_id)
    return ids
