"""What a function that works on a rollout knows of it, and how it learns that it should stop."""

from __future__ import annotations

import threading
from contextvars import ContextVar

from lightningstore.client.values import Attempt, Rollout, StopReason
from opentelemetry.trace import Tracer


class AttemptCancelled(BaseException):
    """The attempt is to stop: raised by `RunContext.check`.

    Not an Exception, so that a function which catches those lets it through, as with
    asyncio.CancelledError.
    """


class NonRetryable(Exception):
    """Raised by a function for what another attempt would not do better.

    The rollout then fails at once, whatever its retry condition. Raised from another exception
    (`raise NonRetryable("...") from error`) the failure bears that one's type.
    """


class RunContext:
    """What a function that works on a rollout knows of it."""

    def __init__(self, rollout: Rollout, worker_id: str) -> None:
        #: The rollout, as it was claimed.
        self.rollout = rollout
        #: The claim that is being worked on.
        self.attempt: Attempt = rollout.attempt
        #: The worker that claimed it.
        self.worker_id = worker_id
        #: Set when the attempt is to stop; whatever the function then returns counts no more.
        self.cancelled = threading.Event()
        #: Why, if the server said so. None while it goes on, and when it is the runner that stops.
        self.stop_reason: StopReason | None = None
        #: Its spans are filed under the attempt.
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
        """Raise AttemptCancelled if the attempt is to stop. To be called often by plain functions."""
        if self.cancelled.is_set():
            raise AttemptCancelled(self.why)

    @property
    def why(self) -> str:
        """Why it is to stop, for people."""
        return "the runner stops" if self.stop_reason is None else self.stop_reason.value


#: The attempt that the running code works on.
current: ContextVar[RunContext | None] = ContextVar("lightningstore_attempt", default=None)
