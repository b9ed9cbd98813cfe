"""Rollouts, and what they are created from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.attempts import ATTEMPT_STATUS, Attempt
from lightningstore.client._values.convert import JSONObject
from lightningstore.client._values.enums import AttemptStatus, RolloutMode, RolloutStatus
from lightningstore.client._values.text import names_fields
from lightningstore.client._values.view import View
from lightningstore.v1 import rollout_pb2

ROLLOUT_STATUS = rollout_pb2.RolloutStatus.DESCRIPTOR
ROLLOUT_MODE = rollout_pb2.RolloutMode.DESCRIPTOR
FILTER_LOGIC = rollout_pb2.FilterLogic.DESCRIPTOR


@dataclass(frozen=True)
class RetryBackoff:
    """Delay before the n-th retry: initial_delay * factor ** (n - 1), at most max_delay, ± jitter.

    Args:
        initial_delay: Delay of the first retry in seconds.
        factor: Growth of the delay from one retry to the next, at least 1.
        max_delay: Maximum delay in seconds, before jitter. None: one hour.
        jitter: Maximum random share of the delay that is added or subtracted, from 0 to 1.
    """

    initial_delay: float = 0.0
    factor: float = 1.0
    max_delay: float | None = None
    jitter: float = 0.0

    def to_message(self) -> rollout_pb2.RetryBackoff:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            ValueError: A delay is not finite.
        """
        message = rollout_pb2.RetryBackoff(factor=self.factor, jitter=self.jitter)
        if self.initial_delay:
            message.initial_delay.CopyFrom(convert.to_duration(self.initial_delay))
        if self.max_delay is not None:
            message.max_delay.CopyFrom(convert.to_duration(self.max_delay))
        return message

    @classmethod
    def from_message(cls, message: rollout_pb2.RetryBackoff) -> RetryBackoff:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The back-off.
        """
        max_delay = (
            convert.from_duration(message.max_delay) if message.HasField("max_delay") else None
        )
        initial_delay = convert.from_duration(message.initial_delay)
        return cls(initial_delay, message.factor or 1.0, max_delay, message.jitter)


@dataclass(frozen=True)
class RolloutConfig:
    """Time limits of the attempts of a rollout, and its retries.

    Args:
        timeout: Maximum seconds from the start of an attempt to its end. None: unlimited.
        unresponsive_timeout: Maximum seconds without a span or heartbeat of an attempt. None: unlimited.
        max_attempts: Maximum number of attempts made by retries, at least 1.
        retry_condition: Statuses of an attempt that are retried: "failed", "timeout", "unresponsive". Empty: no retry.
        retry_backoff: Delay of a retry in the queue. None: no delay.

    Raises:
        TypeError: `retry_condition` is a single string.

    Example:
        config = RolloutConfig(
            timeout=600,
            unresponsive_timeout=30,
            max_attempts=3,
            retry_condition=["failed", "unresponsive"],
            retry_backoff=RetryBackoff(initial_delay=1, factor=2, max_delay=60),
        )
    """

    timeout: float | None = None
    unresponsive_timeout: float | None = None
    max_attempts: int = 1
    retry_condition: Sequence[AttemptStatus | str | int] = ()
    retry_backoff: RetryBackoff | None = None

    def __post_init__(self) -> None:
        if isinstance(self.retry_condition, str):
            raise TypeError("retry_condition must be a list, not a single string")
        object.__setattr__(self, "retry_condition", tuple(self.retry_condition))

    def to_message(self) -> rollout_pb2.RolloutConfig:
        """Convert to a message of the contract.

        Returns:
            The message.

        Raises:
            ValueError: A time is not finite, or a status is unknown.
        """
        message = rollout_pb2.RolloutConfig(
            max_attempts=self.max_attempts,
            retry_condition=convert.to_numbers(ATTEMPT_STATUS, self.retry_condition),
        )
        if self.timeout is not None:
            message.timeout.CopyFrom(convert.to_duration(self.timeout))
        if self.unresponsive_timeout is not None:
            message.unresponsive_timeout.CopyFrom(convert.to_duration(self.unresponsive_timeout))
        if self.retry_backoff is not None:
            message.retry_backoff.CopyFrom(self.retry_backoff.to_message())
        return message

    @classmethod
    def from_message(cls, message: rollout_pb2.RolloutConfig) -> RolloutConfig:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The config.
        """

        def seconds(field: str) -> float | None:
            if not message.HasField(field):  # type: ignore[arg-type]
                return None
            return convert.from_duration(getattr(message, field))

        backoff = None
        if message.HasField("retry_backoff"):
            backoff = RetryBackoff.from_message(message.retry_backoff)
        return cls(
            timeout=seconds("timeout"),
            unresponsive_timeout=seconds("unresponsive_timeout"),
            max_attempts=message.max_attempts or 1,
            retry_condition=tuple(
                convert.from_number(AttemptStatus, ATTEMPT_STATUS, n)
                for n in message.retry_condition
            ),
            retry_backoff=backoff,
        )


def config_of(value: object) -> RolloutConfig:
    """Return a config, or create one from a mapping with its fields. Raises TypeError."""
    if isinstance(value, RolloutConfig):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"config must be a RolloutConfig or a mapping, not {type(value).__name__}")
    known = {field.name for field in fields(RolloutConfig)}
    if unknown := sorted(set(map(str, value)) - known):
        raise TypeError(f"config has no {', '.join(unknown)}: its fields are {sorted(known)}")
    return RolloutConfig(**value)


@dataclass(frozen=True)
class RolloutSpec:
    """A rollout to be created by `enqueue_rollouts`.

    Args:
        input: The task of the agent: any value with JSON, also a dataclass, a pydantic model or a numpy value.
        mode: Purpose of the rollout: "train", "val" or "test". None: unspecified.
        priority: Rollouts with a higher priority are claimed first.
        group_id: Name shared by rollouts that belong together, such as the samples of one task.
        resources_id: The resources that the agent works with. Empty: the latest ones when it is enqueued.
            "latest": the latest ones at each claim, retries included.
        config: Time limits and retries, also as a mapping. None: no time limits, one attempt.
        metadata: A JSON object of your own.
        rollout_id: Id of the rollout. Empty: the client creates one.
        queue: Task queue that it is claimed from, named like a namespace. Empty: the default queue.
        labels: Labels for filters, at most 32: keys of 1 to 63 of A-Z a-z 0-9 - _ . /, values of at most 63
            characters.
    """

    input: Any
    mode: RolloutMode | str | int | None = None
    priority: int = 0
    group_id: str = ""
    resources_id: str = ""
    config: RolloutConfig | Mapping[str, Any] | None = None
    metadata: JSONObject | None = None
    rollout_id: str = ""
    queue: str = ""
    labels: Mapping[str, str] | None = None

    @names_fields
    def to_message(self) -> rollout_pb2.RolloutSpec:
        """Convert to a message of the contract. An empty rollout id stays empty.

        Returns:
            The message.

        Raises:
            TypeError: A part of the input or of the metadata has no JSON, or a field is of the wrong type.
            ValueError: A number has no JSON, a mode is unknown, or a text is not valid UTF-8.
        """
        input_json = convert.to_json(self.input, "input")
        metadata_json = convert.to_json_object(self.metadata, "metadata")
        config = None if self.config is None else config_of(self.config).to_message()
        try:
            return rollout_pb2.RolloutSpec(
                input_json=input_json,
                mode=convert.to_number(ROLLOUT_MODE, self.mode),  # type: ignore[arg-type]
                priority=self.priority,
                group_id=self.group_id,
                resources_id=self.resources_id,
                config=config,
                metadata_json=metadata_json,
                rollout_id=self.rollout_id,
                queue=self.queue,
                labels=convert.labels(self.labels),
            )
        except TypeError as error:  # protobuf does not name the field
            raise self._wrong_type() or error from None

    def _wrong_type(self) -> TypeError | None:
        """Return the error of the first field that is of the wrong type."""
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if not isinstance(value, kind):
                return TypeError(f"{name} must be {_NAMES[kind]}, not {type(value).__name__}")
        return None

    @classmethod
    def of(cls, value: RolloutSpec | Mapping[str, Any]) -> RolloutSpec:
        """Return a spec, or create one from a mapping.

        Args:
            value: A spec, or a mapping with the fields of a spec.

        Returns:
            The spec.

        Raises:
            TypeError: The mapping has no "input", or unknown fields, or the value is not a mapping.
        """
        if isinstance(value, RolloutSpec):
            return value
        if not isinstance(value, Mapping):
            raise TypeError(
                f"a rollout must be a RolloutSpec or a mapping, not {type(value).__name__}; "
                "RolloutSpec(input) makes a rollout of an input"
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown or "input" not in value:
            raise TypeError(
                f"a rollout must be a mapping with 'input' and any of {sorted(known - {'input'})}, "
                f"not one with {sorted(map(str, value))}"
            )
        return cls(**value)


#: Types of the fields of a spec that protobuf checks, and their names in errors.
_KINDS: dict[str, Any] = {
    "mode": str | int | None,
    "priority": int,
    "group_id": str,
    "resources_id": str,
    "rollout_id": str,
    "queue": str,
}
_NAMES: dict[Any, str] = {
    str | int | None: 'None, "train", "val" or "test"',
    int: "an int",
    str: "a str",
}


class Rollout(View[rollout_pb2.Rollout]):
    """One task for an agent, from the queue to its outcome. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("rollout_id", "status", "latest_attempt_id")

    @property
    def rollout_id(self) -> str:
        """Id of the rollout."""
        return self.message.rollout_id

    @cached_property
    def input(self) -> Any:
        """The task of the agent, parsed once. Its JSON text is `message.input_json`.

        Raises:
            LookupError: The response omitted it, see `payloads_omitted`.
        """
        self._check_payloads()
        return convert.from_json(self.message.input_json, "input")

    @property
    def mode(self) -> RolloutMode | None:
        """Purpose of the rollout. None: unspecified."""
        if not self.message.mode:
            return None
        return convert.from_number(RolloutMode, ROLLOUT_MODE, self.message.mode)

    @property
    def priority(self) -> int:
        """Priority: rollouts with a higher one are claimed first."""
        return self.message.priority

    @property
    def group_id(self) -> str:
        """Name shared by rollouts that belong together. Empty: none."""
        return self.message.group_id

    @property
    def resources_id(self) -> str:
        """Id of the resources that the agent works with. Empty: none. "latest": those that are the latest at each claim.

        The attempt names what it was claimed with.
        """
        return self.message.resources_id

    @property
    def queue(self) -> str:
        """Task queue that it is claimed from. Empty: the default queue."""
        return self.message.queue

    @property
    def labels(self) -> dict[str, str]:
        """Labels chosen by the caller. May be empty."""
        return dict(self.message.labels)

    @property
    def status(self) -> RolloutStatus:
        """Status of the rollout."""
        return convert.from_number(RolloutStatus, ROLLOUT_STATUS, self.message.status)

    @property
    def is_finished(self) -> bool:
        """Whether the rollout has succeeded, failed or been cancelled."""
        return self.status.is_finished

    @property
    def config(self) -> RolloutConfig:
        """Time limits and retries."""
        return RolloutConfig.from_message(self.message.config)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The caller's JSON object. Empty by default.

        Raises:
            LookupError: The response omitted it, see `payloads_omitted`.
        """
        self._check_payloads()
        return convert.from_json_object(self.message.metadata_json)

    @property
    def payloads_omitted(self) -> bool:
        """Whether the response omitted input and metadata, and metadata and failure of the latest attempt.

        They did not fit into a message, as in the response to the cancellation of many rollouts, or `omit_payloads` of
        `list_rollouts` left out all of them but the failure. `get_rollout` and `get_attempt` return them.
        """
        return self.message.payloads_omitted

    def _check_payloads(self) -> None:
        if self.message.payloads_omitted:
            raise LookupError(
                f"the response omitted the payloads of rollout {self.rollout_id}: get_rollout returns them"
            )

    def fill(self, whole: Rollout) -> None:
        """Add the omitted payloads.

        Args:
            whole: The same rollout, as `get_rollout` returns it.
        """
        self.message.input_json = whole.message.input_json
        self.message.metadata_json = whole.message.metadata_json
        self.message.payloads_omitted = False

    @property
    def start_time(self) -> datetime:
        """Time at which the rollout was enqueued or started, in UTC."""
        return convert.from_timestamp(self.message.start_time)

    @property
    def end_time(self) -> datetime | None:
        """Time at which the rollout finished, in UTC. None before that."""
        return self._time("end_time")

    @property
    def attempt_count(self) -> int:
        """Number of attempts so far."""
        return self.message.attempt_count

    @property
    def latest_attempt_id(self) -> str:
        """Id of the newest attempt. Empty before the first claim."""
        return self.message.latest_attempt_id

    @property
    def end_publish_number(self) -> int:
        """Latest publish number of the store when the rollout finished; 0 if it is not finished, or unknown."""
        return self.message.end_publish_number

    @property
    def completion_number(self) -> int:
        """Number of the finish among all finishes of the store, from 1. 0 unless the rollout is finished."""
        return self.message.completion_number

    @property
    def latest_attempt(self) -> Attempt | None:
        """The newest attempt; in the response to a claim, the claimed one. None before the first claim."""
        if not self.message.HasField("latest_attempt"):
            return None
        return Attempt(self.message.latest_attempt)

    @property
    def reward(self) -> float | None:
        """Reward of the newest attempt. None: there is none."""
        attempt = self.latest_attempt
        return attempt.reward if attempt is not None else None

    @property
    def scores(self) -> dict[str, float]:
        """Scores of the newest attempt, by name. Empty: there are none."""
        attempt = self.latest_attempt
        return attempt.scores if attempt is not None else {}

    @property
    def attempt(self) -> Attempt:
        """The newest attempt; in the response to a claim, the claimed one.

        Raises:
            LookupError: There is no attempt yet.
        """
        attempt = self.latest_attempt
        if attempt is None:
            raise LookupError(f"rollout {self.rollout_id} has no attempt yet")
        return attempt


class DeleteResult(NamedTuple):
    """The result of deleting rollouts. Each id of the call is in one of the lists.

    Attributes:
        deleted: Ids of the rollouts that the call deleted.
        missing: Ids of which there was no rollout, for example because an earlier try of the call deleted it.
        kept: Ids of rollouts that another call reopened meanwhile, or that are damaged.
    """

    deleted: list[str]
    missing: list[str]
    kept: list[str]

    @classmethod
    def from_message(cls, message: rollout_pb2.DeleteRolloutsResponse) -> DeleteResult:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The result.
        """
        return cls(
            list(message.deleted_rollout_ids),
            list(message.missing_rollout_ids),
            list(message.kept_rollout_ids),
        )
