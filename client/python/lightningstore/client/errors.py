"""The errors of calls, one class for each status code.

LightningStoreError              .code .reason .message .metadata .retry_delay .field_violations
├── InvalidArgumentError         a field is invalid: field_violations names it
├── NotFoundError                a rollout, attempt, worker, group or the resources do not exist
├── AlreadyExistsError           the id exists with other content
├── FailedPreconditionError      the state does not allow the call: change it first
├── AbortedError                 the call conflicted with another one: start again
├── OutOfRangeError              a completion number greater than the last one
├── ResourceExhaustedError       over a limit; with retry_delay it can be retried
├── UnavailableError             the server cannot be reached or shuts down; retried until the deadline
├── DeadlineExceededError        no answer in time; a write may have taken effect
├── CancelledCallError           cancelled by this client, by closing it for instance
├── UnauthenticatedError         credentials are missing or invalid
├── PermissionDeniedError        the credentials do not allow the call
├── UnimplementedError           the server is older than this client
├── DataLossError                the record is stored but damaged; others are readable
└── InternalError                a defect of the server; metadata["errorId"] is in its log
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

#: Key of the trailing metadata that carries a google.rpc.Status.
DETAILS_KEY = "grpc-status-details-bin"

#: gRPC's texts for calls that this client has cancelled.
_CANCELLED_HERE = ("Locally cancelled", "Channel closed")
#: gRPC's texts for a connection that breaks during a call, besides UNAVAILABLE.
_BROKEN = (
    "RST_STREAM",
    "Stream removed",
    "Socket closed",
    "Connection reset",
    "Internal error from Core",  # what grpc.aio says of a write after the end
    "Error in HTTP transport",
    "No status received",
)
#: The status codes that gRPC reports with these texts.
_VAGUE = (
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # HTTP/2's ENHANCE_YOUR_CALM
)


class FieldViolation(NamedTuple):
    """An invalid field of a request.

    Attributes:
        field: Path of the field in the request, such as "items[3].config.max_attempts".
        description: What would be valid.
    """

    field: str
    description: str


class LightningStoreError(Exception):
    """A call failed. It has changed nothing, unless the subclass says that it may have.

    Args:
        message: What is wrong, for people.
        code: Status code of gRPC. None: the code of the class.
        reason: Name of an ErrorReason of the contract, such as "ERROR_REASON_ROLLOUT_NOT_FOUND".
        metadata: The values that the message names, for programs.
        retry_delay: Seconds after which the call can be retried.
        field_violations: The invalid fields.

    Attributes:
        code: Status code of gRPC.
        message: What is wrong, for people.
        reason: Name of an ErrorReason of the contract, such as "ERROR_REASON_ROLLOUT_NOT_FOUND". Empty if the server,
            or a proxy before it, gave none.
        metadata: The values that the message names, for programs. Keys are in lowerCamelCase.
        retry_delay: Seconds after which the call can be retried. None: the server gave none.
        field_violations: The invalid fields, as FieldViolation objects.

    Example:
        try:
            store.get_rollout("ro-unknown")
        except NotFoundError as error:
            print(error.code.name, error.reason, error.metadata)
    """

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
        self.message = message
        if code is not None:
            self.code = code
        self.reason = reason
        self.metadata = dict(metadata or {})
        self.retry_delay = retry_delay
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
    """A field of the request is invalid; `field_violations` names it."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(LightningStoreError):
    """A rollout, attempt, worker or group, or resources that the request names do not exist."""

    code = grpc.StatusCode.NOT_FOUND


class AlreadyExistsError(LightningStoreError):
    """The id exists with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS


class FailedPreconditionError(LightningStoreError):
    """The state of the store does not allow the call. Retrying is useless until the state changes."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class AbortedError(LightningStoreError):
    """The call conflicted with another one. Start the whole operation again."""

    code = grpc.StatusCode.ABORTED


class OutOfRangeError(LightningStoreError):
    """A completion number is greater than the last one of the store."""

    code = grpc.StatusCode.OUT_OF_RANGE


class ResourceExhaustedError(LightningStoreError):
    """A limit is exceeded. With a `retry_delay` the call was retried until its deadline; without one, retrying is useless."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class UnavailableError(LightningStoreError):
    """The server cannot be reached, or shuts down. A write may have taken effect."""

    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceededError(LightningStoreError):
    """The server did not answer before the deadline. A write may have taken effect."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED


class CancelledCallError(LightningStoreError):
    """This client cancelled the call, because it was closed for instance. A write may have taken effect."""

    code = grpc.StatusCode.CANCELLED


class UnauthenticatedError(LightningStoreError):
    """The credentials are missing or invalid."""

    code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(LightningStoreError):
    """The credentials do not allow the call."""

    code = grpc.StatusCode.PERMISSION_DENIED


class UnimplementedError(LightningStoreError):
    """The server does not have the method: it is older than this client, or not a LightningStore server."""

    code = grpc.StatusCode.UNIMPLEMENTED


class DataLossError(LightningStoreError):
    """The record that the request names is stored but damaged. Other records are readable; retrying is useless."""

    code = grpc.StatusCode.DATA_LOSS


class InternalError(LightningStoreError):
    """A defect of the server; its log contains `metadata["errorId"]`. A write may have taken effect."""

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
        DataLossError,
        InternalError,
    )
}
_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def from_status(status: status_pb2.Status) -> LightningStoreError:
    """Convert a google.rpc.Status.

    Args:
        status: The status, with ErrorInfo, RetryInfo and BadRequest among its details.

    Returns:
        An error of the class for the status code.
    """
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
        except DecodeError:  # the other details are valid all the same
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
    """Convert an error of gRPC.

    Args:
        error: The error of a blocking or asyncio call.

    Returns:
        An error of the class for the status code.
    """
    call: Any = error
    return from_ending(call.code(), call.details(), call.trailing_metadata())


def from_ending(
    code: grpc.StatusCode | None, details: str | None, trailers: Iterable[Any] | None
) -> LightningStoreError:
    """Convert the end of a call.

    Args:
        code: Status code of gRPC. None: UNKNOWN.
        details: gRPC's text.
        trailers: Keys and values of the trailing metadata, which may carry a google.rpc.Status.

    Returns:
        An error of the class for the status code. A connection that broke is always UNAVAILABLE.
    """
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
    if code == grpc.StatusCode.CANCELLED and not any(sign in text for sign in _CANCELLED_HERE):
        code = grpc.StatusCode.UNAVAILABLE  # by a server that shuts down, or by a proxy
    if code == grpc.StatusCode.UNIMPLEMENTED:
        text = f"the server does not have this call: it is older than this client. gRPC: {text}"
    return _CLASSES.get(code, LightningStoreError)(text, code=code)
