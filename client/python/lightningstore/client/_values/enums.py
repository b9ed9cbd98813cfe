"""Words of the contract as enums whose values are plain lower-case strings.

`UNRECOGNIZED` stands for a value that a newer server knows and this client does not; the number is in the
view's `message`.
"""

from __future__ import annotations

from enum import Enum


class Unset(Enum):
    """Tells "leave it as it is" from None, which clears."""

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


#: Default of arguments that change a field: the field stays as it is. None clears it.
UNSET = Unset.UNSET


class RolloutStatus(str, Enum):
    """Where a rollout stands. Treat an unrecognized one as not finished."""

    QUEUING = "queuing"
    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    REQUEUING = "requeuing"
    UNRECOGNIZED = "unrecognized"

    @property
    def is_finished(self) -> bool:
        """Whether it is succeeded, failed or cancelled."""
        return self in _FINISHED


_FINISHED = (RolloutStatus.SUCCEEDED, RolloutStatus.FAILED, RolloutStatus.CANCELLED)


class RolloutMode(str, Enum):
    """What a rollout is for."""

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    UNRECOGNIZED = "unrecognized"


class AttemptStatus(str, Enum):
    """Where an attempt stands. Treat an unrecognized one as not finished."""

    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEOUT = "timeout"
    UNRESPONSIVE = "unresponsive"
    UNRECOGNIZED = "unrecognized"


class StopReason(str, Enum):
    """Why a runner should stop working on an attempt. Stop on an unrecognized one too."""

    ROLLOUT_CANCELLED = "rollout_cancelled"
    ROLLOUT_FINISHED = "rollout_finished"
    SUPERSEDED = "superseded"
    UNKNOWN_ATTEMPT = "unknown_attempt"
    UNRECOGNIZED = "unrecognized"


class WorkerStatus(str, Enum):
    """What a worker does. Treat an unrecognized one as unknown."""

    UNKNOWN = "unknown"
    IDLE = "idle"
    BUSY = "busy"
    UNRECOGNIZED = "unrecognized"


class TemplateEngine(str, Enum):
    """How a prompt template is filled in: Python's str.format, Jinja, or POML."""

    F_STRING = "f_string"
    JINJA = "jinja"
    POML = "poml"
    UNRECOGNIZED = "unrecognized"


class Durability(str, Enum):
    """What an answered write survives: nothing, the end of the process, or a power cut too."""

    NONE = "none"
    RELAXED = "relaxed"
    FULL = "full"
    UNRECOGNIZED = "unrecognized"
