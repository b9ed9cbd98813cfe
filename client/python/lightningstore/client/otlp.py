"""Spans of OpenTelemetry: their JSON, values and batches, and the attributes that name an attempt."""

from __future__ import annotations

from lightningstore.client._datasets.batches import batch_like, split_batch
from lightningstore.client._datasets.otlp_json import request_batches, span_from_json, span_to_json
from lightningstore.client._exporter.outbox import ATTEMPT_ID, ROLLOUT_ID
from lightningstore.client._values.spans import from_any_value

__all__ = [
    "ATTEMPT_ID",
    "ROLLOUT_ID",
    "batch_like",
    "from_any_value",
    "request_batches",
    "span_from_json",
    "span_to_json",
    "split_batch",
]
