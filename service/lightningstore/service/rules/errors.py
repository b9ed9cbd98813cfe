"""What can go wrong in a store: one class a reason, free of transport codes.

`rpc/status.py` turns these into google.rpc.Status. Each class's docstring says when it is raised; each
message names what is wrong and what would be right.
"""

from __future__ import annotations

from typing import ClassVar

from lightningstore.service.rules.texts import shortened
from lightningstore.v1 import error_reason_pb2 as reasons

#: Longest text of an error, and longest fact in its metadata.
MAX_MESSAGE_BYTES = 1000
MAX_VALUE_BYTES = 300


def quoted(value: str) -> str:
    """Return an id as a message shows it: whole, unless it is longer than ids may be."""
    return repr(shortened(value, MAX_VALUE_BYTES))


class StoreError(Exception):
    """A call that the store refuses. It has changed nothing unless a subclass says otherwise."""

    reason: ClassVar[int] = reasons.ERROR_REASON_INTERNAL

    def __init__(self, message: str, /, **metadata: object) -> None:
        """Take the text for people and the facts for machines (keys in lowerCamelCase)."""
        # All of it travels in trailers, of which gRPC takes 8 KiB by default: what a caller wrote is echoed
        # in parts.
        self.message = shortened(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.metadata = {k: shortened(str(v), MAX_VALUE_BYTES) for k, v in metadata.items()}
        #: Seconds after which a repeat has a chance; None where repeating is no use.
        self.retry_delay: float | None = None


class FieldInvalid(StoreError):
    """A field has a value that it cannot have."""

    reason = reasons.ERROR_REASON_FIELD_INVALID

    def __init__(self, field: str, description: str) -> None:
        """Take the path of the field in the request, and what would be right."""
        super().__init__(f"{field}: {description}", field=field)
        self.field = shortened(field, MAX_VALUE_BYTES)
        self.description = shortened(description, MAX_MESSAGE_BYTES)


class MalformedMessage(StoreError):
    """The bytes are no message of the call's type."""

    reason = reasons.ERROR_REASON_MALFORMED_MESSAGE

    def __init__(self, message_name: str) -> None:
        super().__init__(f"the bytes are no valid {message_name}", message=message_name)


class PageTokenMismatch(StoreError):
    """A page token is used with other filters or another order, or is none."""

    reason = reasons.ERROR_REASON_PAGE_TOKEN_MISMATCH

    def __init__(self) -> None:
        super().__init__("page_token: not from a page of this query; start again without it")


class RequestIdReused(StoreError):
    """A request id comes again with other content."""

    reason = reasons.ERROR_REASON_REQUEST_ID_REUSED

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used for another request; make a new one for each",
            requestId=request_id,
        )


class RolloutNotFound(StoreError):
    """There is no such rollout."""

    reason = reasons.ERROR_REASON_ROLLOUT_NOT_FOUND

    def __init__(self, rollout_id: str) -> None:
        super().__init__(f"no rollout {quoted(rollout_id)}", rolloutId=rollout_id)


class AttemptNotFound(StoreError):
    """The rollout has no such attempt, or none yet."""

    reason = reasons.ERROR_REASON_ATTEMPT_NOT_FOUND

    def __init__(self, rollout_id: str, attempt_id: str) -> None:
        super().__init__(
            f"rollout {quoted(rollout_id)} has no attempt {quoted(attempt_id)}",
            rolloutId=rollout_id,
            attemptId=attempt_id,
        )


class ResourcesNotFound(StoreError):
    """There are no such resources, or none yet."""

    reason = reasons.ERROR_REASON_RESOURCES_NOT_FOUND

    def __init__(self, resources_id: str) -> None:
        """Take the unknown id, or nothing where the latest was asked for."""
        text = (
            f"no resources {quoted(resources_id)}"
            if resources_id
            else "no resources have been added yet"
        )
        super().__init__(text, resourcesId=resources_id)


class WorkerNotFound(StoreError):
    """There is no such worker."""

    reason = reasons.ERROR_REASON_WORKER_NOT_FOUND

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"no worker {quoted(worker_id)}", workerId=worker_id)


class GroupNotFound(StoreError):
    """No rollout is in the group."""

    reason = reasons.ERROR_REASON_GROUP_NOT_FOUND

    def __init__(self, group_id: str) -> None:
        super().__init__(f"no rollout is in group {quoted(group_id)}", groupId=group_id)


class RolloutExists(StoreError):
    """The rollout id is taken by other content."""

    reason = reasons.ERROR_REASON_ROLLOUT_EXISTS

    def __init__(self, rollout_id: str) -> None:
        super().__init__(
            f"rollout {quoted(rollout_id)} exists with other content", rolloutId=rollout_id
        )


class ResourcesExist(StoreError):
    """The resources id is taken."""

    reason = reasons.ERROR_REASON_RESOURCES_EXISTS

    def __init__(self, resources_id: str) -> None:
        super().__init__(
            f"resources {quoted(resources_id)} exist; UpdateResources replaces them",
            resourcesId=resources_id,
        )


class SpanExists(StoreError):
    """A span id of the attempt is taken by a span with other content."""

    reason = reasons.ERROR_REASON_SPAN_EXISTS

    def __init__(self, span_id: bytes, count: int) -> None:
        """Take the span id, and how many spans of the batch are like it."""
        super().__init__(
            f"span_id {span_id.hex()} is stored with other content; {count} such span(s) in the batch: "
            "use random span ids",
            spanId=span_id.hex(),
        )


class TransitionNotAllowed(StoreError):
    """The status cannot change in this way."""

    reason = reasons.ERROR_REASON_TRANSITION_NOT_ALLOWED

    def __init__(self, what: str, old: str, new: str) -> None:
        super().__init__(f"{what} is {old} and cannot become {new}", **{"from": old, "to": new})


class SpansEvicted(StoreError):
    """The spans of the rollout were evicted to make room."""

    reason = reasons.ERROR_REASON_SPANS_EVICTED

    def __init__(self, rollout_id: str) -> None:
        super().__init__(
            f"the spans of rollout {quoted(rollout_id)} were evicted from memory",
            rolloutId=rollout_id,
        )


class StoreIdMismatch(StoreError):
    """A completion number comes from another store."""

    reason = reasons.ERROR_REASON_STORE_ID_MISMATCH

    def __init__(self, given: str, own: str) -> None:
        super().__init__(
            f"store_id: this is store {own!r}, the completion number is from {quoted(given)}",
            storeId=own,
        )


class CompletionNumberBeyondEnd(StoreError):
    """A completion number is above the last one there is."""

    reason = reasons.ERROR_REASON_COMPLETION_NUMBER_BEYOND_END

    def __init__(self, given: int, last: int) -> None:
        super().__init__(
            f"after_completion_number: {given} is above the last one, {last}", last=last
        )


class BatchTooLarge(StoreError):
    """A call has more items than the limit."""

    reason = reasons.ERROR_REASON_BATCH_TOO_LARGE

    def __init__(self, field: str, count: int | str, limit: int) -> None:
        """Take the field, how many items it has and how many it may have."""
        super().__init__(
            f"{field}: {count} items, at most {limit} are allowed", field=field, limit=limit
        )


class PayloadTooLarge(StoreError):
    """An input, a span or an answer has more bytes than the limit."""

    reason = reasons.ERROR_REASON_PAYLOAD_TOO_LARGE

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(
            f"{field}: {size} bytes, at most {limit} are allowed", field=field, limitBytes=limit
        )


class QueueFull(StoreError):
    """The queue has no room for what would be enqueued."""

    reason = reasons.ERROR_REASON_QUEUE_FULL

    def __init__(self, limit: int) -> None:
        super().__init__(f"the queue is full: at most {limit} rollouts", limit=limit)
        self.retry_delay = 1.0


class Busy(StoreError):
    """Writes come faster than the disk takes them, or too many streams are open."""

    reason = reasons.ERROR_REASON_BUSY

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_delay = 0.5


class ShuttingDown(StoreError):
    """The server is going down."""

    reason = reasons.ERROR_REASON_SHUTTING_DOWN

    def __init__(self) -> None:
        super().__init__("the server is shutting down; repeat the call")
        self.retry_delay = 1.0


class StorageFailed(StoreError):
    """The storage failed and is being recovered: whether the write took place is open."""

    reason = reasons.ERROR_REASON_STORAGE_FAILED

    def __init__(self, cause: str) -> None:
        super().__init__(f"the storage failed ({cause}) and is being recovered; repeat the call")
        self.retry_delay = 1.0


class ReadFailed(StorageFailed):
    """The storage does not answer a read. Other reads and writes may succeed."""

    def __init__(self, cause: str) -> None:
        StoreError.__init__(self, f"the storage could not be read ({cause}); repeat the call")
        self.retry_delay = 1.0


class DataFileLost(StorageFailed):
    """The data file is no longer at its path, or has lost its end."""

    def __init__(self, description: str) -> None:
        StoreError.__init__(self, description)
        self.retry_delay = 1.0


class OwnershipLost(StorageFailed):
    """Another process owns the data, or may: this one stops serving it for good."""

    def __init__(self, cause: str) -> None:
        StoreError.__init__(self, f"this server no longer owns the data ({cause}); repeat the call")
        self.retry_delay = 1.0


class DataDamaged(StoreError):
    """What is asked for is stored, and damaged."""

    reason = reasons.ERROR_REASON_DATA_DAMAGED

    def __init__(self, cause: object, rollout_id: str = "") -> None:
        where = f"rollout {rollout_id!r}" if rollout_id else "what this call reads"
        super().__init__(
            f"{where} is damaged in the data file ({cause}): repeating the call does not help; "
            "`lightningstore check` on the server says more",
            **({"rolloutId": rollout_id} if rollout_id else {}),
        )
        self.cause = cause


class TokenMissing(StoreError):
    """The server wants a token, and the call has none."""

    reason = reasons.ERROR_REASON_TOKEN_MISSING

    def __init__(self) -> None:
        super().__init__("this server wants a token: metadata authorization, Bearer and the token")


class TokenInvalid(StoreError):
    """The token of the call is none of this server's, or no bearer token."""

    reason = reasons.ERROR_REASON_TOKEN_INVALID

    def __init__(self) -> None:
        super().__init__("the token is none of this server's")


class TokensUnreadable(StoreError):
    """The server cannot read its tokens, so it cannot tell a token from one that was revoked."""

    reason = reasons.ERROR_REASON_TOKEN_INVALID

    def __init__(self) -> None:
        super().__init__(
            "the server cannot read its tokens file: its log says why; no token is let in"
        )


class TokenExpired(StoreError):
    """The token of the call has come to its end."""

    reason = reasons.ERROR_REASON_TOKEN_EXPIRED

    def __init__(self) -> None:
        super().__init__("the token has expired")


class PermissionDenied(StoreError):
    """The role of the token does not allow the call."""

    reason = reasons.ERROR_REASON_PERMISSION_DENIED

    def __init__(self, role: str, method: str) -> None:
        super().__init__(f"the role {role} may not call {method}", role=role, method=method)


class Misconfigured(Exception):
    """The server would be set up in a wrong or unsafe way. Raised at start, with one line for people."""


class StorageUnusable(Exception):
    """The data file cannot be opened as a store. Raised at start, with one line for people."""
