"""What a function knows about the attempt that it works on, and how it learns that it should stop."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from lightningstore.client.values import Attempt, Rollout, StopReason
from opentelemetry.trace import Tracer


class AttemptCancelled(BaseException):
    """Raised by `RunContext.check` when the attempt should stop.

    It is a BaseException, like asyncio.CancelledError, so that `except Exception` does not catch it.
    """


class NonRetryable(Exception):
    """Raised by a function for a failure that is not retryable: the rollout fails at once.

    The type of the failure is that of the cause, if there is one.

    Example:
        def agent(task, resources, tracer, context):
            try:
                return float(task["answer"])
            except KeyError as error:
                raise NonRetryable("the task has no answer") from error
    """


class RunContext:
    """The attempt that a function works on: the last argument of the function of a `Runner`.

    Args:
        rollout: The claimed rollout.
        worker_id: The worker that claimed it.

    Attributes:
        rollout: The rollout, as it was claimed.
        attempt: The attempt.
        worker_id: The worker that claimed it.
        cancelled: Event that is set when the attempt should stop. The result of the function is then ignored.
        stop_reason: Why the attempt should stop. None: it should continue, or the runner stops.
        tracer: Tracer whose spans are stored under the attempt.
    """

    def __init__(self, rollout: Rollout, worker_id: str) -> None:
        self.rollout = rollout
        self.attempt: Attempt = rollout.attempt
        self.worker_id = worker_id
        self.cancelled = threading.Event()
        self.stop_reason: StopReason | None = None
        self.tracer: Tracer | None = None

    @property
    def rollout_id(self) -> str:
        """Id of the rollout."""
        return self.attempt.rollout_id

    @property
    def attempt_id(self) -> str:
        """Id of the attempt."""
        return self.attempt.attempt_id

    def __str__(self) -> str:
        return f"attempt {self.attempt_id} of rollout {self.rollout_id}"

    def check(self) -> None:
        """Raise AttemptCancelled if the attempt should stop. Plain functions should call it often.

        Raises:
            AttemptCancelled: The attempt was cancelled or superseded, or the runner stops.
        """
        if self.cancelled.is_set():
            raise AttemptCancelled(self.why)

    @property
    def why(self) -> str:
        """Why the attempt should stop, for people."""
        return "the runner stops" if self.stop_reason is None else self.stop_reason.value


#: The attempt that the current code works on.
current: ContextVar[RunContext | None] = ContextVar("lightningstore_attempt", default=None)
