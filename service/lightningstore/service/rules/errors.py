"""Errors of the store: one class per reason, without transport codes.

`rpc/status.py` converts them to google.rpc.Status. The docstring of each class says when it is
raised. Each message says what is wrong and what would be right.
"""

from __future__ import annotations

from typing import ClassVar

from lightningstore.service.rules.texts import SHOWN_LENGTH, shortened
from lightningstore.v1 import error_reason_pb2 as reasons

#: Maximum length of an error's text in bytes.
MAX_MESSAGE_BYTES = 1000


def quoted(value: str) -> str:
    """Return an id for a message, truncated if it is longer than ids may be."""
    return repr(shortened(value, SHOWN_LENGTH))


class StoreError(Exception):
    """A call that the store rejects. It has changed nothing unless a subclass says otherwise."""

    reason: ClassVar[int] = reasons.ERROR_REASON_INTERNAL

    def __init__(self, message: str, /, **metadata: object) -> None:
        """Create an error with a text for people and facts for programs (keys in lowerCamelCase)."""
        # The text is sent in trailers, which gRPC limits to 8 KiB by default, so texts from the
        # caller are truncated.
        self.message = shortened(message, MAX_MESSAGE_BYTES)
        super().__init__(self.message)
        self.metadata = {k: shortened(str(v), SHOWN_LENGTH) for k, v in metadata.items()}
        #: Seconds after which a retry may succeed; None if the error is not retryable.
        self.retry_delay: float | None = None


class FieldInvalid(StoreError):
    """A field has an invalid value."""

    reason = reasons.ERROR_REASON_FIELD_INVALID

    def __init__(self, field: str, description: str) -> None:
        """Create an error with the path of the field in the request, and the valid values."""
        super().__init__(f"{field}: {description}", field=field)
        self.field = shortened(field, SHOWN_LENGTH)
        self.description = shortened(description, MAX_MESSAGE_BYTES)


class MalformedMessage(StoreError):
    """The bytes are not a valid message of the call's type."""

    reason = reasons.ERROR_REASON_MALFORMED_MESSAGE

    def __init__(self, message_name: str) -> None:
        super().__init__(f"the bytes are not a valid {message_name}", message=message_name)


class PageTokenMismatch(StoreError):
    """A page token is malformed, or was used with other filters or another order."""

    reason = reasons.ERROR_REASON_PAGE_TOKEN_MISMATCH

    def __init__(self) -> None:
        super().__init__("page_token: not from a page of this query; start again without it")


class RequestIdReused(StoreError):
    """A request id was used for a different request."""

    reason = reasons.ERROR_REASON_REQUEST_ID_REUSED

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f"request_id {request_id!r} was used for a different request; use a new one for each",
            requestId=request_id,
        )


class RolloutNotFound(StoreError):
    """There is no such rollout."""

    reason = reasons.ERROR_REASON_ROLLOUT_NOT_FOUND

    def __init__(self, rollout_id: str) -> None:
        super().__init__(f"no rollout {quoted(rollout_id)}", rolloutId=rollout_id)


class AttemptNotFound(StoreError):
    """The rollout has no such attempt, or no attempt yet."""

    reason = reasons.ERROR_REASON_ATTEMPT_NOT_FOUND

    def __init__(self, rollout_id: str, attempt_id: str) -> None:
        super().__init__(
            f"rollout {quoted(rollout_id)} has no attempt {quoted(attempt_id)}",
            rolloutId=rollout_id,
            attemptId=attempt_id,
        )


class ResourcesNotFound(StoreError):
    """There are no such resources, or no resources yet."""

    reason = reasons.ERROR_REASON_RESOURCES_NOT_FOUND

    def __init__(self, resources_id: str) -> None:
        """Create an error with the unknown id, or "" if the latest were requested."""
        text = (
            f"no resources {quoted(resources_id)}"
            if resources_id
            else "no resources have been added yet"
        )
        super().__init__(text, resourcesId=resources_id)


class VersionNotPublished(StoreError):
    """Resources of this id have no such version yet."""

    reason = reasons.ERROR_REASON_RESOURCES_NOT_FOUND

    def __init__(self, resources_id: str, version: int, current: int) -> None:
        super().__init__(
            f"resources {quoted(resources_id)} have no version {version} yet; the current one is {current}",
            resourcesId=resources_id,
            version=version,
        )


class NumberNotPublished(StoreError):
    """No version has this publish number yet."""

    reason = reasons.ERROR_REASON_RESOURCES_NOT_FOUND

    def __init__(self, publish_number: int, last: int) -> None:
        super().__init__(
            f"no resources have publish number {publish_number} yet; the latest is {last}",
            publishNumber=publish_number,
        )


class VersionRemoved(StoreError):
    """The version of resources is not kept any more."""

    reason = reasons.ERROR_REASON_RESOURCES_VERSION_REMOVED

    def __init__(self, name: str, **metadata: object) -> None:
        """Create an error with the version, for people, and what identifies it, for programs."""
        super().__init__(
            f"{name} were removed: only the newest versions of each resources id are kept "
            "(--keep-resource-versions)",
            **metadata,
        )


class WorkerNotFound(StoreError):
    """There is no such worker."""

    reason = reasons.ERROR_REASON_WORKER_NOT_FOUND

    def __init__(self, worker_id: str) -> None:
        super().__init__(f"no worker {quoted(worker_id)}", workerId=worker_id)


class GroupNotFound(StoreError):
    """The group has no rollouts, or no such group was created."""

    reason = reasons.ERROR_REASON_GROUP_NOT_FOUND

    def __init__(self, group_id: str, *, created: bool = False) -> None:
        """Create an error with the id; with `created`, rollouts may have it as a label."""
        text = f"no rollout is in group {quoted(group_id)}"
        if created:
            text = f"no group {quoted(group_id)}: groups are created by EnqueueRollouts.groups"
        super().__init__(text, groupId=group_id)


class NamespaceNotFound(StoreError):
    """There is no such namespace."""

    reason = reasons.ERROR_REASON_NAMESPACE_NOT_FOUND

    def __init__(self, name: str, hint: str = "") -> None:
        """Create an error with the name, and with what may help; the default is the command that creates it."""
        hint = (
            hint
            or f"create it with: lightningstore namespaces create {shortened(name, SHOWN_LENGTH)}"
        )
        super().__init__(f"no namespace {quoted(name)}; {hint}", namespace=name)


class RolloutExists(StoreError):
    """A rollout with this id and other content exists."""

    reason = reasons.ERROR_REASON_ROLLOUT_EXISTS

    def __init__(self, rollout_id: str) -> None:
        super().__init__(
            f"rollout {quoted(rollout_id)} exists with other content", rolloutId=rollout_id
        )


class ResourcesExist(StoreError):
    """Resources with this id exist."""

    reason = reasons.ERROR_REASON_RESOURCES_EXISTS

    def __init__(self, resources_id: str) -> None:
        super().__init__(
            f"resources {quoted(resources_id)} exist; UpdateResources replaces them",
            resourcesId=resources_id,
        )


class NamespaceExists(StoreError):
    """A namespace with this name exists, created by another request."""

    reason = reasons.ERROR_REASON_NAMESPACE_EXISTS

    def __init__(self, name: str, hint: str = "UpdateNamespace changes its settings") -> None:
        super().__init__(f"namespace {quoted(name)} exists; {hint}", namespace=name)


class SpanExists(StoreError):
    """The attempt has a span with this span id and other content."""

    reason = reasons.ERROR_REASON_SPAN_EXISTS

    def __init__(self, span_id: bytes, count: int) -> None:
        """Create an error with the span id and the number of such spans in the batch."""
        super().__init__(
            f"span_id {span_id.hex()} is stored with other content; {count} such span(s) in the batch: "
            "use random span ids",
            spanId=span_id.hex(),
        )


class TransitionNotAllowed(StoreError):
    """The status change is not allowed."""

    reason = reasons.ERROR_REASON_TRANSITION_NOT_ALLOWED

    def __init__(self, what: str, old: str, new: str) -> None:
        super().__init__(f"{what} is {old} and cannot become {new}", **{"from": old, "to": new})


class RolloutNotFinished(StoreError):
    """The rollout has not finished, or its attempt is still live."""

    reason = reasons.ERROR_REASON_ROLLOUT_NOT_FINISHED

    def __init__(self, rollout_id: str, status: str, live_attempt_id: str) -> None:
        """Create an error with the status of the rollout; its live attempt matters if it has finished."""
        cause = f"is {status}: cancel it, and wait until its runner has stopped"
        if live_attempt_id:
            cause = f"is {status}, but attempt {quoted(live_attempt_id)} has not ended: wait for it"
        super().__init__(
            f"rollout {quoted(rollout_id)} {cause}", rolloutId=rollout_id, status=status
        )


class ClaimsPaused(StoreError):
    """Claims are paused, and the call cannot wait."""

    reason = reasons.ERROR_REASON_CLAIMS_PAUSED

    def __init__(self, start_time: str, reason: str) -> None:
        """Create an error with the start of the pause in RFC 3339 and its reason."""
        cause = f": {quoted(reason)}" if reason else ""
        super().__init__(
            f"claims are paused since {start_time}{cause}; repeat the call after ResumeClaims",
            startTime=start_time,
            reason=reason,
        )


class SpansEvicted(StoreError):
    """The spans of the rollout were evicted to free memory."""

    reason = reasons.ERROR_REASON_SPANS_EVICTED

    def __init__(self, rollout_id: str) -> None:
        super().__init__(
            f"the spans of rollout {quoted(rollout_id)} were evicted from memory",
            rolloutId=rollout_id,
        )


class StoreIdMismatch(StoreError):
    """A completion number or publish number comes from another store."""

    reason = reasons.ERROR_REASON_STORE_ID_MISMATCH

    def __init__(self, given: str, own: str) -> None:
        super().__init__(
            f"store_id: this is store {own!r}, the number is from {quoted(given)}",
            storeId=own,
        )


class NamespaceInUse(StoreError):
    """The namespace cannot be deleted: attempts are running in it, or it is the namespace "default"."""

    reason = reasons.ERROR_REASON_NAMESPACE_IN_USE

    def __init__(self, name: str, cause: str, count: int) -> None:
        """Create an error with the cause, for people, and the number of running attempts."""
        super().__init__(
            f"namespace {quoted(name)} cannot be deleted: {cause}", namespace=name, count=count
        )


class CompletionNumberBeyondEnd(StoreError):
    """A completion number is greater than the last one."""

    reason = reasons.ERROR_REASON_COMPLETION_NUMBER_BEYOND_END

    def __init__(self, given: int, last: int) -> None:
        super().__init__(
            f"after_completion_number: {given} is above the last one, {last}", last=last
        )


class PublishNumberBeyondEnd(StoreError):
    """A watch starts after a publish number that has not been assigned yet."""

    reason = reasons.ERROR_REASON_PUBLISH_NUMBER_BEYOND_END

    def __init__(self, after: int, last: int) -> None:
        super().__init__(
            f"after_publish_number is {after}, the latest publish number of this store is {last}",
            last=last,
        )


class BatchTooLarge(StoreError):
    """A call has more items than the limit."""

    reason = reasons.ERROR_REASON_BATCH_TOO_LARGE

    def __init__(self, field: str, count: int | str, limit: int) -> None:
        """Create an error with the field, its number of items and the limit."""
        super().__init__(
            f"{field}: {count} items, at most {limit} are allowed", field=field, limit=limit
        )


class PayloadTooLarge(StoreError):
    """An input, a span or a response exceeds the limit in bytes."""

    reason = reasons.ERROR_REASON_PAYLOAD_TOO_LARGE

    def __init__(self, field: str, size: int, limit: int) -> None:
        super().__init__(
            f"{field}: {size} bytes, at most {limit} are allowed", field=field, limitBytes=limit
        )


class QueueFull(StoreError):
    """The queue has no space for the rollouts."""

    reason = reasons.ERROR_REASON_QUEUE_FULL

    def __init__(self, limit: int) -> None:
        super().__init__(f"the queue is full: at most {limit} rollouts", limit=limit)
        self.retry_delay = 1.0


class Busy(StoreError):
    """Writes arrive faster than the disk stores them, or too many streams are open."""

    reason = reasons.ERROR_REASON_BUSY

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.retry_delay = 0.5


class ShuttingDown(StoreError):
    """The server is shutting down."""

    reason = reasons.ERROR_REASON_SHUTTING_DOWN

    def __init__(self) -> None:
        super().__init__("the server is shutting down; repeat the call")
        self.retry_delay = 1.0


class StorageFailed(StoreError):
    """The storage failed and is being recovered. A write may or may not have taken effect."""

    reason = reasons.ERROR_REASON_STORAGE_FAILED

    def __init__(self, cause: str) -> None:
        super().__init__(f"the storage failed ({cause}) and is being recovered; repeat the call")
        self.retry_delay = 1.0


class WentBack(StorageFailed):
    """The database lacks commits that were answered: an older state of it was restored."""

    def __init__(self, seq: int = 0) -> None:
        """Create an error with the number of the last commit that is gone, 0 if only another server knows it."""
        lost = (
            f"commit {seq}, which was answered, is gone" if seq else "another server has noticed it"
        )
        super().__init__(f"the database went back in time: {lost}")


class ReadFailed(StorageFailed):
    """A read from the storage failed. Other reads and writes may succeed."""

    def __init__(self, cause: str) -> None:
        StoreError.__init__(self, f"the storage could not be read ({cause}); repeat the call")
        self.retry_delay = 1.0


class CatalogFailed(StorageFailed):
    """A namespace could not be created or deleted, or the namespaces could not be listed."""

    def __init__(self, description: str) -> None:
        """Create an error with what failed, and why."""
        StoreError.__init__(self, f"{description}; repeat the call")
        self.description = description
        self.retry_delay = 1.0


class DataFileLost(StorageFailed):
    """The data file is missing from its path or was truncated."""

    def __init__(self, description: str) -> None:
        StoreError.__init__(self, description)
        self.retry_delay = 1.0


class OwnershipLost(StorageFailed):
    """Another process owns the data, or may: this one stops serving it for good."""

    def __init__(self, cause: str) -> None:
        StoreError.__init__(self, f"this server no longer owns the data ({cause}); repeat the call")
        self.retry_delay = 1.0


class NotOwner(StoreError):
    """Another server owns the namespace, or none does at the moment."""

    reason = reasons.ERROR_REASON_NOT_OWNER

    def __init__(self, name: str, owner: str) -> None:
        """Create an error with the namespace and the address of its owner, "" if there is none."""
        where = f"server {owner} owns it" if owner else "no server owns it at the moment"
        super().__init__(
            f"this server does not serve namespace {quoted(name)}: {where}; repeat the call",
            namespace=name,
            owner=owner,
        )
        self.retry_delay = 0.5


class DataDamaged(StoreError):
    """The requested record is stored but damaged."""

    reason = reasons.ERROR_REASON_DATA_DAMAGED

    def __init__(self, cause: object, rollout_id: str = "", *, group_id: str = "") -> None:
        where = f"rollout {rollout_id!r}" if rollout_id else "the requested data"
        where = f"group {quoted(group_id)}" if group_id else where
        super().__init__(
            f"{where} is damaged in the data file ({cause}); the error is not retryable; "
            "run `lightningstore check` on the server",
            **({"rolloutId": rollout_id} if rollout_id else {}),
            **({"groupId": group_id} if group_id else {}),
        )
        self.cause = cause


class Misconfigured(Exception):
    """The configuration of the server is wrong or unsafe.

    Raised at start, with one line for people.
    """


class StorageUnusable(Exception):
    """The data file cannot be opened as a store. Raised at start, with one line for people."""


class OwnedElsewhere(StorageUnusable):
    """Another server owns the namespace."""

    def __init__(self, message: str, address: str) -> None:
        """Create an error with one line for people, and the address of the owner."""
        super().__init__(message)
        self.address = address
