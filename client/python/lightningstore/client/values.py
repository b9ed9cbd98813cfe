"""The values that calls take and return. Times are datetimes in UTC, durations are seconds.

Views (`Rollout`, `Attempt`, `Worker` ...) show a message from the server, which is their `message`. Frozen dataclasses
(`RolloutSpec`, `RolloutConfig`, `Failure` ...) are also created by users.
"""

from __future__ import annotations

from lightningstore.client._values.attempts import (
    Attempt,
    AttemptUpdate,
    Failure,
    Stop,
)
from lightningstore.client._values.consumers import Consumer, Delivery
from lightningstore.client._values.convert import JSONObject, RawJSON
from lightningstore.client._values.enums import (
    UNSET,
    AckOutcome,
    AttemptStatus,
    ConsumerUnit,
    DeliveryState,
    Durability,
    GroupDeadlineAction,
    GroupStatus,
    RolloutMode,
    RolloutStatus,
    StaleAction,
    StopReason,
    TemplateEngine,
    Unset,
    WorkerStatus,
)
from lightningstore.client._values.groups import Group, GroupSpec, RewardSummary
from lightningstore.client._values.namespaces import Namespace
from lightningstore.client._values.resources import (
    LLM,
    CustomResource,
    PromptTemplate,
    ProxyLLM,
    Resources,
)
from lightningstore.client._values.rollouts import (
    DeleteResult,
    RetryBackoff,
    Rollout,
    RolloutConfig,
    RolloutSpec,
)
from lightningstore.client._values.samples import AttemptSamples, Sample, SampleSegment
from lightningstore.client._values.series import RolloutFilters, SeriesBucket
from lightningstore.client._values.server import (
    ClaimPause,
    Limits,
    PauseResult,
    ServerInfo,
    Statistics,
)
from lightningstore.client._values.spans import (
    IngestResult,
    Rejection,
    SequenceIdRange,
    Span,
    SpanEvent,
    SpanException,
    SpanLink,
    SpanStatus,
)
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
    "AckOutcome",
    "Attempt",
    "AttemptSamples",
    "AttemptStatus",
    "AttemptTriplets",
    "AttemptUpdate",
    "ClaimPause",
    "Consumer",
    "ConsumerUnit",
    "CustomResource",
    "DeleteResult",
    "Delivery",
    "DeliveryState",
    "Durability",
    "Failure",
    "Group",
    "GroupDeadlineAction",
    "GroupSpec",
    "GroupStatus",
    "HeartbeatReply",
    "IngestResult",
    "JSONObject",
    "Limits",
    "Namespace",
    "Page",
    "PauseResult",
    "PromptTemplate",
    "ProxyLLM",
    "RawJSON",
    "Rejection",
    "Resources",
    "RetryBackoff",
    "RewardSummary",
    "Rollout",
    "RolloutConfig",
    "RolloutFilters",
    "RolloutMode",
    "RolloutSpec",
    "RolloutStatus",
    "Sample",
    "SampleSegment",
    "SequenceIdRange",
    "SeriesBucket",
    "ServerInfo",
    "Span",
    "SpanEvent",
    "SpanException",
    "SpanLink",
    "SpanStatus",
    "StaleAction",
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
