"""Attempts, and what is reported about them."""

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
REWARD_SOURCE = attempt_pb2.RewardSource.DESCRIPTOR
STOP_REASON = attempt_pb2.StopReason.DESCRIPTOR


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    Args:
        type: Kind of the failure, such as the name of an exception class.
        message: Description for people. The server keeps its beginning.
        retryable: Whether another attempt may succeed. None: yes. False overrides the retry condition of the config.
    """

    type: str = ""
    message: str = ""
    retryable: bool | None = None

    def to_message(self) -> attempt_pb2.Failure:
        """Convert to a message of the contract. Texts are made valid UTF-8.

        Returns:
            The message.
        """
        return attempt_pb2.Failure(
            type=valid(self.type), message=valid(self.message), retryable=self.retryable
        )

    @classmethod
    def from_message(cls, message: attempt_pb2.Failure) -> Failure:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The failure.
        """
        retryable = message.retryable if message.HasField("retryable") else None
        return cls(message.type, message.message, retryable)


class Attempt(View[attempt_pb2.Attempt]):
    """One try of a worker at a rollout. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("rollout_id", "attempt_id", "status")

    @property
    def rollout_id(self) -> str:
        """Id of the rollout."""
        return self.message.rollout_id

    @property
    def attempt_id(self) -> str:
        """Id of the attempt, unique within the rollout."""
        return self.message.attempt_id

    @property
    def sequence_number(self) -> int:
        """Number of the attempt within the rollout, from 1."""
        return self.message.sequence_number

    @property
    def status(self) -> AttemptStatus:
        """Status of the attempt."""
        return convert.from_number(AttemptStatus, ATTEMPT_STATUS, self.message.status)

    @property
    def failure(self) -> Failure | None:
        """Why the attempt failed. None unless its runner reported a failure."""
        if not self.message.HasField("failure"):
            return None
        return Failure.from_message(self.message.failure)

    @property
    def worker_id(self) -> str:
        """Worker that claimed the attempt. Empty if the claim named none."""
        return self.message.worker_id

    @property
    def resources_id(self) -> str:
        """Id of the resources at the claim. Empty if there were none."""
        return self.message.resources_id

    @property
    def resources_version(self) -> int:
        """Version of the resources at the claim. 0 if there were none."""
        return self.message.resources_version

    @property
    def publish_number(self) -> int:
        """Publish number of that version. 0 if there were no resources, or with a server without publish numbers."""
        return self.message.publish_number

    def lag(self, latest_publish_number: int) -> int | None:
        """Return how many publications the resources of the attempt are behind the latest.

        Args:
            latest_publish_number: Publish number of the latest resources, of `Resources` or `Statistics`.

        Returns:
            The number of publications, 0 if its resources are the latest. None if it has no publish number.

        Example:
            weights = await store.add_resources({"weights": [0.1]})
            rollout = await store.start_rollout({"question": "Why?"})
            assert rollout.attempt.lag(weights.publish_number) == 0
        """
        return latest_publish_number - self.publish_number if self.publish_number else None

    @property
    def start_time(self) -> datetime:
        """Time of the claim, in UTC."""
        return convert.from_timestamp(self.message.start_time)

    @property
    def end_time(self) -> datetime | None:
        """Time of the end, in UTC. None while the attempt is live."""
        return self._time("end_time")

    @property
    def last_heartbeat_time(self) -> datetime | None:
        """Time of the last heartbeat or span, in UTC. None before the first."""
        return self._time("last_heartbeat_time")

    @property
    def span_count(self) -> int:
        """Number of spans stored for the attempt, including evicted ones."""
        return self.message.span_count

    @property
    def reward(self) -> float | None:
        """How well the attempt did: what was reported, else the value of its last reward span. None: unknown."""
        return self.message.reward if self.message.HasField("reward") else None

    @property
    def scores(self) -> dict[str, float]:
        """Other scores that were reported, by name. Empty: none."""
        return dict(self.message.scores)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The caller's JSON object. Empty by default."""
        return convert.from_json_object(self.message.metadata_json)


class Stop(NamedTuple):
    """An attempt that its runner should stop.

    Attributes:
        rollout_id: Id of the rollout.
        attempt_id: Id of the attempt.
        reason: Why to stop.
    """

    rollout_id: str
    attempt_id: str
    reason: StopReason

    @classmethod
    def from_message(cls, message: attempt_pb2.Stop) -> Stop:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The attempt to stop.
        """
        reason = convert.from_number(StopReason, STOP_REASON, message.reason)
        return cls(message.attempt.rollout_id, message.attempt.attempt_id, reason)


def stops(messages: Iterable[attempt_pb2.Stop]) -> list[Stop]:
    """Convert messages of the contract."""
    return [Stop.from_message(message) for message in messages]


class AttemptUpdate(NamedTuple):
    """The result of `update_attempt`.

    Attributes:
        attempt: The attempt after the change.
        missing_span_count: Number of sent spans that are not stored. None unless `sent_span_count` was passed.
        stop_reason: Why the runner should stop. None: it should continue.
    """

    attempt: Attempt
    missing_span_count: int | None
    stop_reason: StopReason | None
