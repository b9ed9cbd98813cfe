"""What users see of rollouts, and make themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from functools import cached_property
from typing import Any

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
    """Delay before the n-th retry: initial_delay * factor ** (n - 1), at most max_delay, ± jitter."""

    #: Delay of the first retry, in seconds.
    initial_delay: float = 0.0
    #: Growth from one retry to the next, at least 1.
    factor: float = 1.0
    #: Upper bound of the delay in seconds, before jitter. None: an hour.
    max_delay: float | None = None
    #: Random share of the delay that is added or taken away, from 0 to 1.
    jitter: float = 0.0

    def to_message(self) -> rollout_pb2.RetryBackoff:
        """Return it as message of the contract."""
        message = rollout_pb2.RetryBackoff(factor=self.factor, jitter=self.jitter)
        if self.initial_delay:
            message.initial_delay.CopyFrom(convert.to_duration(self.initial_delay))
        if self.max_delay is not None:
            message.max_delay.CopyFrom(convert.to_duration(self.max_delay))
        return message

    @classmethod
    def from_message(cls, message: rollout_pb2.RetryBackoff) -> RetryBackoff:
        """Read it from a message of the contract."""
        longest = (
            convert.from_duration(message.max_delay) if message.HasField("max_delay") else None
        )
        first = convert.from_duration(message.initial_delay)
        return cls(first, message.factor or 1.0, longest, message.jitter)


@dataclass(frozen=True)
class RolloutConfig:
    """When an attempt is given up, and whether its rollout is then tried again."""

    #: Longest time from an attempt's start to its end, in seconds. None: no limit.
    timeout: float | None = None
    #: Longest silence of an attempt, in seconds. None: no limit.
    unresponsive_timeout: float | None = None
    #: Most attempts made by retrying, at least 1.
    max_attempts: int = 1
    #: The ends of an attempt that are retried: failed, timeout, unresponsive.
    retry_condition: Sequence[AttemptStatus | str | int] = ()
    #: How long a retry waits in the queue. None: not at all.
    retry_backoff: RetryBackoff | None = None

    def __post_init__(self) -> None:
        """Make a tuple of the retry condition. Raises TypeError for a bare string."""
        if isinstance(self.retry_condition, str):
            raise TypeError("retry_condition: a list is wanted, not one string")
        object.__setattr__(self, "retry_condition", tuple(self.retry_condition))

    def to_message(self) -> rollout_pb2.RolloutConfig:
        """Return it as message of the contract."""
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
        """Read it from a message of the contract."""

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


@dataclass(frozen=True)
class RolloutSpec:
    """A rollout to be made."""

    #: What the agent is to do: any JSON value.
    input: Any
    #: What the rollout is for: train, val or test. None: not said.
    mode: RolloutMode | str | int | None = None
    #: Higher is claimed first.
    priority: int = 0
    #: Names the rollouts that belong together.
    group_id: str = ""
    #: The resources that the agent works with. Empty: the latest there are.
    resources_id: str = ""
    #: None: no time limits, one attempt.
    config: RolloutConfig | None = None
    #: A JSON object of the caller's own.
    metadata: JSONObject | None = None
    #: Empty: the client makes one.
    rollout_id: str = ""

    @names_fields
    def to_message(self) -> rollout_pb2.RolloutSpec:
        """Return it as message of the contract, its rollout id as given.

        Raises TypeError or ValueError, which names the field, for what the contract cannot carry.
        """
        return rollout_pb2.RolloutSpec(
            input_json=convert.to_json(self.input, "input"),
            mode=convert.to_number(ROLLOUT_MODE, self.mode),  # type: ignore[arg-type]
            priority=self.priority,
            group_id=self.group_id,
            resources_id=self.resources_id,
            config=None if self.config is None else self.config.to_message(),
            metadata_json=convert.to_json_object(self.metadata, "metadata"),
            rollout_id=self.rollout_id,
        )

    @classmethod
    def of(cls, value: RolloutSpec | Mapping[str, Any]) -> RolloutSpec:
        """Return a spec from a spec or its fields by name. Raises TypeError for unknown ones."""
        if isinstance(value, RolloutSpec):
            return value
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown or "input" not in value:
            raise TypeError(
                f"a mapping with 'input' and any of {sorted(known - {'input'})} is wanted, "
                f"not one with {sorted(value)}"
            )
        return cls(**value)


class Rollout(View[rollout_pb2.Rollout]):
    """One task for an agent, from the queue to its outcome."""

    _shown = ("rollout_id", "status", "latest_attempt_id")

    @property
    def rollout_id(self) -> str:
        """Its id."""
        return self.message.rollout_id

    @cached_property
    def input(self) -> Any:
        """What the agent is to do. Parsed once; the text is `message.input_json`.

        Raises LookupError where the answer left it out (see `payloads_omitted`).
        """
        self._check_payloads()
        return convert.from_json(self.message.input_json, "input")

    @property
    def mode(self) -> RolloutMode | None:
        """What it is for; None if nobody said."""
        if not self.message.mode:
            return None
        return convert.from_number(RolloutMode, ROLLOUT_MODE, self.message.mode)

    @property
    def priority(self) -> int:
        """Higher is claimed first."""
        return self.message.priority

    @property
    def group_id(self) -> str:
        """Names the rollouts that belong together; may be empty."""
        return self.message.group_id

    @property
    def resources_id(self) -> str:
        """The resources that the agent works with; may be empty."""
        return self.message.resources_id

    @property
    def status(self) -> RolloutStatus:
        """Where it stands."""
        return convert.from_number(RolloutStatus, ROLLOUT_STATUS, self.message.status)

    @property
    def is_finished(self) -> bool:
        """Whether it has succeeded, failed or been cancelled."""
        return self.status.is_finished

    @property
    def config(self) -> RolloutConfig:
        """When an attempt is given up, and whether it is tried again."""
        return RolloutConfig.from_message(self.message.config)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """The caller's own. Raises LookupError where the answer left it out."""
        self._check_payloads()
        return convert.from_json_object(self.message.metadata_json)

    @property
    def payloads_omitted(self) -> bool:
        """Whether the answer left out input and metadata, and metadata and failure of the latest attempt.

        They did not fit into a message, as in the answer to the cancellation of many rollouts.
        `get_rollout` and `get_attempt` have them.
        """
        return self.message.payloads_omitted

    def _check_payloads(self) -> None:
        if self.message.payloads_omitted:
            raise LookupError(
                f"this answer left the payloads of rollout {self.rollout_id} out, since they did not fit "
                "into a message: get_rollout has them"
            )

    def fill(self, whole: Rollout) -> None:
        """Take the payloads that this one lacks from the same rollout as `get_rollout` returns it."""
        self.message.input_json = whole.message.input_json
        self.message.metadata_json = whole.message.metadata_json
        self.message.payloads_omitted = False

    @property
    def start_time(self) -> datetime:
        """When it was enqueued, or started."""
        return convert.from_timestamp(self.message.start_time)

    @property
    def end_time(self) -> datetime | None:
        """When it finished."""
        return self._time("end_time")

    @property
    def attempt_count(self) -> int:
        """Number of attempts so far."""
        return self.message.attempt_count

    @property
    def latest_attempt_id(self) -> str:
        """Id of the newest attempt; empty before the first claim."""
        return self.message.latest_attempt_id

    @property
    def completion_number(self) -> int:
        """Its place among all finishes of the store, from 1; 0 unless it is finished."""
        return self.message.completion_number

    @property
    def latest_attempt(self) -> Attempt | None:
        """The newest attempt, in the answer to a claim the claimed one. None before the first claim."""
        if not self.message.HasField("latest_attempt"):
            return None
        return Attempt(self.message.latest_attempt)

    @property
    def attempt(self) -> Attempt:
        """The newest attempt. Raises LookupError before the first claim."""
        attempt = self.latest_attempt
        if attempt is None:
            raise LookupError(f"rollout {self.rollout_id} has no attempt yet")
        return attempt
