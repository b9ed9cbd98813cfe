"""What users see of attempts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.enums import AttemptStatus, StopReason
from lightningstore.client._values.text import valid
from lightningstore.client._values.view import View
from lightningstore.v1 import attempt_pb2

ATTEMPT_STATUS = attempt_pb2.AttemptStatus.DESCRIPTOR
STOP_REASON = attempt_pb2.StopReason.DESCRIPTOR


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed."""

    #: Class of the failure, an exception's name for instance.
    type: str = ""
    #: What a person should read.
    message: str = ""
    #: Whether another attempt could do better. None means yes; False overrules the retry condition.
    retryable: bool | None = None

    def to_message(self) -> attempt_pb2.Failure:
        """Return it as message of the contract, its texts made valid UTF-8."""
        return attempt_pb2.Failure(
            type=valid(self.type), message=valid(self.message), retryable=self.retryable
        )

    @classmethod
    def from_message(cls, message: attempt_pb2.Failure) -> Failure:
        """Read it from a message of the contract."""
        retryable = message.retryable if message.HasField("retryable") else None
        return cls(message.type, message.message, retryable)


class Attempt(View[attempt_pb2.Attempt]):
    """One try of a worker at a rollout."""

    _shown = ("rollout_id", "attempt_id", "status")

    @property
    def rollout_id(self) -> str:
        """Id of the rollout that this is an attempt at."""
        return self.message.rollout_id

    @property
    def attempt_id(self) -> str:
        """Its own id, unique within the rollout."""
        return self.message.attempt_id

    @property
    def sequence_number(self) -> int:
        """Counts the attempts at the rollout, from 1."""
        return self.message.sequence_number

    @property
    def status(self) -> AttemptStatus:
        """Where it stands."""
        return convert.from_number(AttemptStatus, ATTEMPT_STATUS, self.message.status)

    @property
    def failure(self) -> Failure | None:
        """Why it failed, if it did and its runner said so."""
        if not self.message.HasField("failure"):
            return None
        return Failure.from_message(self.message.failure)

    @property
    def worker_id(self) -> str:
        """The worker that claimed it; empty if the claim named none."""
        return self.message.worker_id

    @property
    def resources_id(self) -> str:
        """The resources of the rollout at the claim; empty if there were none."""
        return self.message.resources_id

    @property
    def resources_version(self) -> int:
        """Their version at the claim, 0 if there were none."""
        return self.message.resources_version

    @property
    def start_time(self) -> datetime:
        """When it was claimed."""
        return convert.from_timestamp(self.message.start_time)

    @property
    def end_time(self) -> datetime | None:
        """When it ended."""
        return self._time("end_time")

    @property
    def last_heartbeat_time(self) -> datetime | None:
        """When the server last heard of it."""
        return self._time("last_heartbeat_time")

    @property
    def span_count(self) -> int:
        """Number of spans stored for it, also of those evicted since."""
        return self.message.span_count

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The caller's own."""
        return convert.from_json_object(self.message.metadata_json)


class Stop(NamedTuple):
    """Tells a runner to stop working on an attempt."""

    rollout_id: str
    attempt_id: str
    reason: StopReason

    @classmethod
    def from_message(cls, message: attempt_pb2.Stop) -> Stop:
        """Read it from a message of the contract."""
        reason = convert.from_number(StopReason, STOP_REASON, message.reason)
        return cls(message.attempt.rollout_id, message.attempt.attempt_id, reason)


def stops(messages: Iterable[attempt_pb2.Stop]) -> list[Stop]:
    """Read stops from messages of the contract."""
    return [Stop.from_message(message) for message in messages]


class AttemptUpdate(NamedTuple):
    """What UpdateAttempt answers."""

    #: The attempt after the change.
    attempt: Attempt
    #: Spans sent less spans stored; None unless sent_span_count was given.
    missing_span_count: int | None
    #: Why the runner should stop; None where it need not.
    stop_reason: StopReason | None
