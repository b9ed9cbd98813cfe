"""Groups of statuses by meaning."""

from __future__ import annotations

from lightningstore.v1 import attempt_pb2, rollout_pb2

RETRIABLE = (
    attempt_pb2.ATTEMPT_STATUS_FAILED,
    attempt_pb2.ATTEMPT_STATUS_TIMEOUT,
    attempt_pb2.ATTEMPT_STATUS_UNRESPONSIVE,
)


LIVE_ATTEMPT = (attempt_pb2.ATTEMPT_STATUS_PREPARING, attempt_pb2.ATTEMPT_STATUS_RUNNING)


FINISHED = (
    rollout_pb2.ROLLOUT_STATUS_SUCCEEDED,
    rollout_pb2.ROLLOUT_STATUS_FAILED,
    rollout_pb2.ROLLOUT_STATUS_CANCELLED,
)


QUEUED = (rollout_pb2.ROLLOUT_STATUS_QUEUING, rollout_pb2.ROLLOUT_STATUS_REQUEUING)
