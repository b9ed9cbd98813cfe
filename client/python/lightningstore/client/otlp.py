"""OpenTelemetry spans: their JSON, values, rewards and batches, and the attributes that name their attempt."""

from __future__ import annotations

from lightningstore.client._datasets.batches import batch_like, split_batch
from lightningstore.client._datasets.otlp_json import (
    FieldError,
    request_batches,
    span_from_json,
    span_to_json,
)
from lightningstore.client._values.any_value import from_any_value
from lightningstore.client._values.attributes import ATTEMPT_ID, ROLLOUT_ID
from lightningstore.client._values.rewards import (
    OUTPUTS,
    PRIMARY,
    REWARD,
    Dimension,
    RewardReading,
    read_reward,
)

__all__ = [
    "ATTEMPT_ID",
    "OUTPUTS",
    "PRIMARY",
    "REWARD",
    "ROLLOUT_ID",
    "Dimension",
    "FieldError",
    "RewardReading",
    "batch_like",
    "from_any_value",
    "read_reward",
    "request_batches",
    "span_from_json",
    "span_to_json",
    "split_batch",
]
