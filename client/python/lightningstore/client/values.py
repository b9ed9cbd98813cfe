"""What users see of rollouts, attempts and workers. Times are datetimes in UTC, durations seconds.

Views (Rollout, Attempt, Worker ...) show a message that came from the server and keep it as `.message`.
Frozen dataclasses (RolloutSpec, RolloutConfig, Failure ...) are also what users make themselves.
"""

from __future__ import annotations

from lightningstore.client._values.attempts import (
    Attempt,
    AttemptUpdate,
    Failure,
    Stop,
)
from lightningstore.client._values.convert import JSONObject, RawJSON
from lightningstore.client._values.enums import (
    UNSET,
    AttemptStatus,
    Durability,
    RolloutMode,
    RolloutStatus,
    StopReason,
    TemplateEngine,
    Unset,
    WorkerStatus,
)
from lightningstore.client._values.resources import (
    LLM,
    CustomResource,
    PromptTemplate,
    ProxyLLM,
    Resources,
)
from lightningstore.client._values.rollouts import RetryBackoff, Rollout, RolloutConfig, RolloutSpec
from lightningstore.client._values.server import Limits, ServerInfo, Statistics
from lightningstore.client._values.spans import IngestResult, Rejection, SequenceIdRange, Span
from lightningstore.client._values.triplets import (
    AttemptTriplets,
    Triplet,
    TripletWarning,
    UnmatchedReward,
)
from lightningstore.client._values.view import Page
from lightningstore.client._values.workers import HeartbeatReply, Worker

__all__ = [
    "LLM",
    "UNSET",
    "Attempt",
    "AttemptStatus",
    "AttemptTriplets",
    "AttemptUpdate",
    "CustomResource",
    "Durability",
    "Failure",
    "HeartbeatReply",
    "IngestResult",
    "JSONObject",
    "Limits",
    "Page",
    "PromptTemplate",
    "ProxyLLM",
    "RawJSON",
    "Rejection",
    "Resources",
    "RetryBackoff",
    "Rollout",
    "RolloutConfig",
    "RolloutMode",
    "RolloutSpec",
    "RolloutStatus",
    "SequenceIdRange",
    "ServerInfo",
    "Span",
    "Statistics",
    "Stop",
    "StopReason",
    "TemplateEngine",
    "Triplet",
    "TripletWarning",
    "UnmatchedReward",
    "Unset",
    "Worker",
    "WorkerStatus",
]
