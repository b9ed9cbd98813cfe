"""Converts errors of the server to the exceptions that agentlightning documents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightningstore.client import (
    AlreadyExistsError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)

EVICTED = "ERROR_REASON_SPANS_EVICTED"
NO_ROLLOUT = "ERROR_REASON_ROLLOUT_NOT_FOUND"
NO_ATTEMPT = "ERROR_REASON_ATTEMPT_NOT_FOUND"

#: The server is unreachable or overloaded: the call is retryable.
AWAY = (UnavailableError, DeadlineExceededError, ResourceExhaustedError)


@contextmanager
def refusals(rollout_id: str = "", attempt_id: str = "") -> Iterator[None]:
    """Convert rejections by the server to ValueError, and evicted spans to RuntimeError.

    Unknown ids are reported with agentlightning's texts if the caller passes the ids it sends. Other errors
    (no server, no permission, over a limit) remain a LightningStoreError.
    """
    try:
        yield
    except FailedPreconditionError as error:
        kind = RuntimeError if error.reason == EVICTED else ValueError
        raise kind(error.message) from error
    except NotFoundError as error:
        raise ValueError(_unknown(error, rollout_id, attempt_id)) from error
    except (AlreadyExistsError, InvalidArgumentError) as error:
        raise ValueError(error.message) from error


def _unknown(error: NotFoundError, rollout_id: str, attempt_id: str) -> str:
    if error.reason == NO_ROLLOUT and rollout_id:
        return f"Rollout {rollout_id} not found"
    if error.reason == NO_ATTEMPT and attempt_id == "latest":
        return f"No attempts found for rollout {rollout_id}"
    if error.reason == NO_ATTEMPT and attempt_id:
        return f"Attempt {attempt_id} not found for rollout {rollout_id}"
    return error.message
