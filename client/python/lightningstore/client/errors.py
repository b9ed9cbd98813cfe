"""What a call can fail with.

LightningStoreError              .code .reason .message .metadata .retry_delay .field_violations
├── InvalidArgumentError         a field is wrong: field_violations names it
├── NotFoundError                no such rollout, attempt, resources, worker, group
├── AlreadyExistsError           the id is taken by other content
├── FailedPreconditionError      the state does not allow it: change something first
├── AbortedError                 lost against another call: begin again
├── OutOfRangeError              a completion number beyond the last one
├── ResourceExhaustedError       over a limit; with retry_delay it may be tried later
├── UnavailableError             no server, or one that goes down; retried until the deadline
├── DeadlineExceededError        the time is over; what was asked for may have taken place
├── CancelledCallError           this side gave the call up, by closing the client for instance
├── UnauthenticatedError         no or wrong credentials
├── PermissionDeniedError        not with these credentials
├── UnimplementedError           the server is older than this client
└── InternalError                a defect of the server; metadata["errorId"] is in its log
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

DETAILS_KEY = "grpc-status-details-bin"

#: How gRPC words what this side has cancelled.
_GIVEN_UP_HERE = ("Locally cancelled", "Channel closed")
#: What a connection that breaks under a call looks like, besides UNAVAILABLE.
_BROKEN = (
    "RST_STREAM",
    "Stream removed",
    "Socket closed",
    "Connection reset",
    "Internal error from Core",  # what grpc.aio says of a write after the end
    "Error in HTTP transport",
    "No status received",
)
#: The codes that gRPC gives to that.
_VAGUE = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # HTTP/2's ENHANCE_YOUR_CALM
)


class FieldViolation(NamedTuple):
    """A field that has a value that it cannot have."""

    #: Path of the field in the request, "items[3].config.max_attempts" for instance.
    field: str
    #: What would be right.
    description: str


class LightningStoreError(Exception):
    """A call failed. It has changed nothing unless a subclass leaves that open."""

    #: The status code of gRPC.
    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str = "",
        *,
        code: grpc.StatusCode | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        retry_delay: float | None = None,
        field_violations: Iterable[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        #: What went wrong, for people.
        self.message = message
        if code is not None:
            self.code = code
        #: Name of an ErrorReason, "ERROR_REASON_ROLLOUT_NOT_FOUND" for instance. Empty if the server,
        #: or what stands before it, gave none.
        self.reason = reason
        #: What the message names, for machines; keys in lowerCamelCase.
        self.metadata = dict(metadata or {})
        #: Seconds after which the call may be tried again. None: the server gave none.
        self.retry_delay = retry_delay
        #: The fields that are wrong.
        self.field_violations = tuple(field_violations)

    def __str__(self) -> str:
        reason = self.reason.removeprefix("ERROR_REASON_")
        return f"{self.code.name}{f' ({reason})' if reason else ''}: {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, dict(self.__dict__))


def _rebuild(kind: type[LightningStoreError], message: str, state: dict[str, Any]) -> Any:
    error = kind(message)
    error.__dict__.update(state)
    return error


class InvalidArgumentError(LightningStoreError):
    """A field of the request is wrong; `field_violations` names it."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(LightningStoreError):
    """What the request names is not there."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(LightningStoreError):
    """The id is taken by other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(LightningStoreError):
    """The state of the store does not allow it; repeating is no use before that has changed."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(LightningStoreError):
    """The call lost against another one; begin again with what it is part of."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(LightningStoreError):
    """A completion number is beyond the last one."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhaustedError(LightningStoreError):
    """Over a limit. With a `retry_delay` it was tried again until the deadline; without, it is no use."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(LightningStoreError):
    """There is no server, or it goes down. A write may have taken place."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(LightningStoreError):
    """The answer did not come in time. A write may have taken place."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledCallError(LightningStoreError):
    """Given up on this side, by closing the client for instance. A write may have taken place."""

    code = grpc.StatusCode.CANCELLED


class UnauthenticatedError(LightningStoreError):
    """The server wants credentials, or other ones."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(LightningStoreError):
    """The credentials do not allow it."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnimplementedError(LightningStoreError):
    """The server does not know the method: it is older than this client, or none of ours."""

    code = grpc.StatusCode.UNIMPLEMENTED


class InternalError(LightningStoreError):
    """A defect of the server; `metadata["errorId"]` is in its log. A write may have taken place."""

    code = grpc.StatusCode.INTERNAL


_CLASSES: dict[grpc.StatusCode, type[LightningStoreError]] = {
    kind.code: kind
    for kind in (
        InvalidArgumentError,
        NotFoundError,
        AlreadyExistsError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        ResourceExhaustedError,
        UnavailableError,
        DeadlineExceededError,
        CancelledCallError,
        UnauthenticatedError,
        PermissionDeniedError,
        UnimplementedError,
        InternalError,
    )
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> LightningStoreError:
    """Return the error that a rich status describes."""
    code = _CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    request = error_details_pb2.BadRequest()
    delay: float | None = None
    for detail in status.details:
        try:
            if detail.Unpack(retry):
                delay = retry.retry_delay.seconds + retry.retry_delay.nanos / 1e9
            elif not detail.Unpack(info):
                detail.Unpack(request)
        except DecodeError:  # the rest of the status is good all the same
            continue
    return _CLASSES.get(code, LightningStoreError)(
        status.message,
        code=code,
        reason=info.reason,
        metadata=info.metadata,
        retry_delay=delay,
        field_violations=[FieldViolation(v.field, v.description) for v in request.field_violations],
    )


def from_rpc_error(error: grpc.RpcError) -> LightningStoreError:
    """Return the error that ended a call of gRPC, blocking or asyncio."""
    call: Any = error
    return from_ending(call.code(), call.details(), call.trailing_metadata())


def from_ending(
    code: grpc.StatusCode | None, details: str | None, trailers: Iterable[Any] | None
) -> LightningStoreError:
    """Return the error of a call that ended with this status, these details and trailing metadata."""
    text = details or ""
    code = code or grpc.StatusCode.UNKNOWN
    for key, value in trailers or ():
        if key == DETAILS_KEY:
            try:
                return from_status(status_pb2.Status.FromString(value))
            except DecodeError:
                break
    if code in _VAGUE and any(sign in text for sign in _BROKEN):
        code = grpc.StatusCode.UNAVAILABLE
    if code == grpc.StatusCode.CANCELLED and not any(sign in text for sign in _GIVEN_UP_HERE):
        code = grpc.StatusCode.UNAVAILABLE  # by a server that goes down, or by what lies before it
    return _CLASSES.get(code, LightningStoreError)(text, code=code)
