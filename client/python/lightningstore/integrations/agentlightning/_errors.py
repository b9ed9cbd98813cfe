"""Refusals of the server as the exceptions that agentlightning documents."""

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
NO_ATTEMPT = "ERROR_REASON_ATTEMPT_NOT_FOUND"

#: The server could not be reached, or has too much to do: the same call may succeed later.
AWAY = (UnavailableError, DeadlineExceededError, ResourceExhaustedError)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn what the server refuses into ValueError, and evicted spans into RuntimeError.

    What is nobody's mistake (no server, no permission, over a limit) stays a LightningStoreError.
    """
    try:
        yield
    except FailedPreconditionError as error:
        kind = RuntimeError if error.reason == EVICTED else ValueError
        raise kind(error.message) from error
    except (AlreadyExistsError, InvalidArgumentError, NotFoundError) as error:
        raise ValueError(error.message) from error
