"""Rewards as spans hold them, and as messages. The client has the rules for reading them."""

from __future__ import annotations

from lightningstore.client.otlp import (
    OUTPUTS,
    PRIMARY,
    REWARD,
    Dimension,
    RewardReading,
    from_any_value,
    read_reward,
)
from lightningstore.service.triplets.values import Attributes
from lightningstore.v1.triplet_pb2 import RewardDimension, TripletReward
from opentelemetry.proto.trace.v1.trace_pb2 import Span

#: Prefix of the keys of a reward, and name of the operation that makes one.
MARK = REWARD
#: All dimensions, the primary one first.
Reward = tuple[Dimension, ...]


def may_tell(key: str) -> bool:
    """Tell whether an attribute may concern a reward."""
    return key in (REWARD, *OUTPUTS, "reward") or key.startswith(f"{REWARD}.")


def read(name: str, found: Attributes) -> RewardReading:
    """Return the reward of a span."""
    return read_reward(
        name, {key: from_any_value(value) for key, value in found.items() if may_tell(key)}
    )


def message(reward: Reward, span_id: bytes, sequence_id: int) -> TripletReward:
    """Return a reward with the span that holds it."""
    return TripletReward(
        value=reward[0].value,
        dimensions=[RewardDimension(name=d.name, value=d.value) for d in reward],
        span_id=span_id.hex(),
        sequence_id=sequence_id,
    )


def final(value: float) -> TripletReward:
    """Return a reward that comes with the request."""
    return TripletReward(value=value, dimensions=[RewardDimension(name=PRIMARY, value=value)])


def of_span(span: Span) -> float | None:
    """Return the primary reward of a span, None if it holds none that can be read."""
    found = {pair.key: pair.value for pair in span.attributes if may_tell(pair.key)}
    dimensions = read(span.name, found).dimensions
    return dimensions[0].value if dimensions else None
