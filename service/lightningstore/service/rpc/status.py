"""Errors of the store as google.rpc.Status, and how they end a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from lightningstore.service.rules.errors import FieldInvalid, StoreError
from lightningstore.v1 import error_reason_pb2 as reasons

DOMAIN = "lightningstore"
#: Trailer with the time to wait before a retry: Python's OTLP exporter reads it from nowhere else.
RETRY_INFO_KEY = "google.rpc.retryinfo-bin"

#: Status codes of errors, by their reason.
CODES: dict[int, int] = {
    reasons.ERROR_REASON_FIELD_INVALID: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_MALFORMED_MESSAGE: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_PAGE_TOKEN_MISMATCH: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_REQUEST_ID_REUSED: code_pb2.INVALID_ARGUMENT,
    reasons.ERROR_REASON_ROLLOUT_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_ATTEMPT_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_RESOURCES_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_RESOURCES_VERSION_REMOVED: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_WORKER_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_GROUP_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_CONSUMER_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_NAMESPACE_NOT_FOUND: code_pb2.NOT_FOUND,
    reasons.ERROR_REASON_ROLLOUT_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_RESOURCES_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_SPAN_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_NAMESPACE_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_GROUP_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_CONSUMER_EXISTS: code_pb2.ALREADY_EXISTS,
    reasons.ERROR_REASON_TRANSITION_NOT_ALLOWED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_SPANS_EVICTED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_ROLLOUT_NOT_FINISHED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_CLAIMS_PAUSED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_GROUP_FULL: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_DELIVERY_ENDED: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_STORE_ID_MISMATCH: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_NAMESPACE_IN_USE: code_pb2.FAILED_PRECONDITION,
    reasons.ERROR_REASON_COMPLETION_NUMBER_BEYOND_END: code_pb2.OUT_OF_RANGE,
    reasons.ERROR_REASON_PUBLISH_NUMBER_BEYOND_END: code_pb2.OUT_OF_RANGE,
    reasons.ERROR_REASON_BATCH_TOO_LARGE: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_PAYLOAD_TOO_LARGE: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_QUEUE_FULL: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_BUSY: code_pb2.RESOURCE_EXHAUSTED,
    reasons.ERROR_REASON_SHUTTING_DOWN: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_STORAGE_FAILED: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_NOT_OWNER: code_pb2.UNAVAILABLE,
    reasons.ERROR_REASON_DATA_DAMAGED: code_pb2.DATA_LOSS,
    reasons.ERROR_REASON_TOKEN_MISSING: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_TOKEN_INVALID: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_TOKEN_EXPIRED: code_pb2.UNAUTHENTICATED,
    reasons.ERROR_REASON_PERMISSION_DENIED: code_pb2.PERMISSION_DENIED,
    reasons.ERROR_REASON_INTERNAL: code_pb2.INTERNAL,
}
#: The same for exports of OTLP: exporters drop what is answered with RESOURCE_EXHAUSTED, and retry UNAVAILABLE.
EXPORT_CODES: dict[int, int] = {**CODES, reasons.ERROR_REASON_BUSY: code_pb2.UNAVAILABLE}


def to_status(error: StoreError, codes: Mapping[int, int] = CODES) -> status_pb2.Status:
    """Return an error as a status with its details."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(
            reason=reasons.ErrorReason.Name(error.reason),  # type: ignore[arg-type]
            domain=DOMAIN,
            metadata=error.metadata,
        )
    ]
    if isinstance(error, FieldInvalid):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_delay is not None:
        details.append(_retry_info(error.retry_delay))
    packed = []
    for detail in details:
        holder = any_pb2.Any()
        holder.Pack(detail)
        packed.append(holder)
    return status_pb2.Status(code=codes[error.reason], message=error.message, details=packed)


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(int(seconds * 1000))
    return info


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: StoreError,
    codes: Mapping[int, int] = CODES,
) -> None:
    """End a call with the status of an error. Always raises."""
    status = rpc_status.to_status(to_status(error, codes))
    trailers = tuple(status.trailing_metadata)
    if error.retry_delay is not None:
        trailers += ((RETRY_INFO_KEY, _retry_info(error.retry_delay).SerializeToString()),)
    await context.abort(status.code, status.details, trailers)
