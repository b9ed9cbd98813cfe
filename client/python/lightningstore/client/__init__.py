"""Clients of the lightning store, and what runs rollouts and exports spans on top of them.

Importing the package imports none of its modules. Each is imported when one of its names is first used, so a
program that needs only a client does not wait for the OpenTelemetry SDK.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightningstore.client._async.store import AsyncLightningStore
    from lightningstore.client._async.streams import (
        AsyncGroupStream,
        AsyncResourceStream,
        AsyncWaitStream,
        AsyncWatchStream,
    )
    from lightningstore.client._datasets.exported import ExportedRollout, ImportResult
    from lightningstore.client._runner.context import AttemptCancelled, NonRetryable, RunContext
    from lightningstore.client._runner.ids import SystemIdGenerator
    from lightningstore.client._runner.rewards import emit_reward
    from lightningstore.client._sync.store import LightningStore
    from lightningstore.client._sync.streams import (
        GroupStream,
        ResourceStream,
        WaitStream,
        WatchStream,
    )
    from lightningstore.client._values.rewards import find_final_reward
    from lightningstore.client.embedded import open_store
    from lightningstore.client.errors import (
        AbortedError,
        AlreadyExistsError,
        CancelledCallError,
        DeadlineExceededError,
        FailedPreconditionError,
        FieldViolation,
        InternalError,
        InvalidArgumentError,
        LightningStoreError,
        NotFoundError,
        OutOfRangeError,
        PermissionDeniedError,
        ResourceExhaustedError,
        UnauthenticatedError,
        UnavailableError,
        UnimplementedError,
    )
    from lightningstore.client.exporter import SpanExporter
    from lightningstore.client.runner import Runner
    from lightningstore.client.values import (
        LLM,
        UNSET,
        AckOutcome,
        Attempt,
        AttemptSamples,
        AttemptStatus,
        AttemptTriplets,
        AttemptUpdate,
        ClaimPause,
        Consumer,
        ConsumerUnit,
        CustomResource,
        DeleteResult,
        Delivery,
        DeliveryState,
        Durability,
        Failure,
        Group,
        GroupDeadlineAction,
        GroupSpec,
        GroupStatus,
        HeartbeatReply,
        IngestResult,
        Limits,
        Namespace,
        Page,
        PauseResult,
        PromptTemplate,
        ProxyLLM,
        RawJSON,
        Rejection,
        Resources,
        RetryBackoff,
        RewardSummary,
        Rollout,
        RolloutConfig,
        RolloutFilters,
        RolloutMode,
        RolloutSpec,
        RolloutStatus,
        Sample,
        SampleSegment,
        SequenceIdRange,
        SeriesBucket,
        ServerInfo,
        Span,
        StaleAction,
        Statistics,
        Stop,
        StopReason,
        TemplateEngine,
        Triplet,
        TripletWarning,
        UnmatchedReward,
        Unset,
        Worker,
        WorkerStatus,
    )
    from lightningstore.v1.span_pb2 import SpanBatch

__all__ = [
    "LLM",
    "UNSET",
    "AbortedError",
    "AckOutcome",
    "AlreadyExistsError",
    "AsyncGroupStream",
    "AsyncLightningStore",
    "AsyncResourceStream",
    "AsyncWaitStream",
    "AsyncWatchStream",
    "Attempt",
    "AttemptCancelled",
    "AttemptSamples",
    "AttemptStatus",
    "AttemptTriplets",
    "AttemptUpdate",
    "CancelledCallError",
    "ClaimPause",
    "Consumer",
    "ConsumerUnit",
    "CustomResource",
    "DeadlineExceededError",
    "DeleteResult",
    "Delivery",
    "DeliveryState",
    "Durability",
    "ExportedRollout",
    "FailedPreconditionError",
    "Failure",
    "FieldViolation",
    "Group",
    "GroupDeadlineAction",
    "GroupSpec",
    "GroupStatus",
    "GroupStream",
    "HeartbeatReply",
    "ImportResult",
    "IngestResult",
    "InternalError",
    "InvalidArgumentError",
    "LightningStore",
    "LightningStoreError",
    "Limits",
    "Namespace",
    "NonRetryable",
    "NotFoundError",
    "OutOfRangeError",
    "Page",
    "PauseResult",
    "PermissionDeniedError",
    "PromptTemplate",
    "ProxyLLM",
    "RawJSON",
    "Rejection",
    "ResourceExhaustedError",
    "ResourceStream",
    "Resources",
    "RetryBackoff",
    "RewardSummary",
    "Rollout",
    "RolloutConfig",
    "RolloutFilters",
    "RolloutMode",
    "RolloutSpec",
    "RolloutStatus",
    "RunContext",
    "Runner",
    "Sample",
    "SampleSegment",
    "SequenceIdRange",
    "SeriesBucket",
    "ServerInfo",
    "Span",
    "SpanBatch",
    "SpanExporter",
    "StaleAction",
    "Statistics",
    "Stop",
    "StopReason",
    "SystemIdGenerator",
    "TemplateEngine",
    "Triplet",
    "TripletWarning",
    "UnauthenticatedError",
    "UnavailableError",
    "UnimplementedError",
    "UnmatchedReward",
    "Unset",
    "WaitStream",
    "WatchStream",
    "Worker",
    "WorkerStatus",
    "emit_reward",
    "find_final_reward",
    "open_store",
]

#: Where the names are defined that `values` does not have.
_HOMES = {
    "AsyncLightningStore": "lightningstore.client._async.store",
    "AsyncGroupStream": "lightningstore.client._async.streams",
    "AsyncResourceStream": "lightningstore.client._async.streams",
    "AsyncWaitStream": "lightningstore.client._async.streams",
    "AsyncWatchStream": "lightningstore.client._async.streams",
    "ExportedRollout": "lightningstore.client._datasets.exported",
    "ImportResult": "lightningstore.client._datasets.exported",
    "AttemptCancelled": "lightningstore.client._runner.context",
    "NonRetryable": "lightningstore.client._runner.context",
    "RunContext": "lightningstore.client._runner.context",
    "SystemIdGenerator": "lightningstore.client._runner.ids",
    "emit_reward": "lightningstore.client._runner.rewards",
    "LightningStore": "lightningstore.client._sync.store",
    "GroupStream": "lightningstore.client._sync.streams",
    "ResourceStream": "lightningstore.client._sync.streams",
    "WaitStream": "lightningstore.client._sync.streams",
    "WatchStream": "lightningstore.client._sync.streams",
    "find_final_reward": "lightningstore.client._values.rewards",
    "open_store": "lightningstore.client.embedded",
    "AbortedError": "lightningstore.client.errors",
    "AlreadyExistsError": "lightningstore.client.errors",
    "CancelledCallError": "lightningstore.client.errors",
    "DeadlineExceededError": "lightningstore.client.errors",
    "FailedPreconditionError": "lightningstore.client.errors",
    "FieldViolation": "lightningstore.client.errors",
    "InternalError": "lightningstore.client.errors",
    "InvalidArgumentError": "lightningstore.client.errors",
    "LightningStoreError": "lightningstore.client.errors",
    "NotFoundError": "lightningstore.client.errors",
    "OutOfRangeError": "lightningstore.client.errors",
    "PermissionDeniedError": "lightningstore.client.errors",
    "ResourceExhaustedError": "lightningstore.client.errors",
    "UnauthenticatedError": "lightningstore.client.errors",
    "UnavailableError": "lightningstore.client.errors",
    "UnimplementedError": "lightningstore.client.errors",
    "SpanExporter": "lightningstore.client.exporter",
    "Runner": "lightningstore.client.runner",
    "SpanBatch": "lightningstore.v1.span_pb2",
}
_MODULES = frozenset(
    {
        "connection",
        "datasets",
        "embedded",
        "errors",
        "exporter",
        "message_json",
        "otlp",
        "runner",
        "transports",
        "values",
    }
)


def __getattr__(name: str) -> Any:
    """Import a public name, or a public module, when it is first used."""
    if name in _MODULES:
        return import_module(f"lightningstore.client.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "lightningstore.client.values")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *__all__})
