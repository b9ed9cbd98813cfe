"""Enums of the contract, whose values are lower-case strings.

`UNRECOGNIZED` stands for a value of a newer server that this client does not know. The `message` of the view has its
number.
"""

from __future__ import annotations

from enum import Enum


class Unset(Enum):
    """Type of UNSET, which leaves a field unchanged, unlike None, which clears it.

    Attributes:
        UNSET: The only value.
    """

    UNSET = "unset"

    def __repr__(self) -> str:
        return "UNSET"


#: Default of arguments that change a field: the field stays unchanged. None clears it.
UNSET = Unset.UNSET


class RolloutStatus(str, Enum):
    """Status of a rollout.

    Attributes:
        QUEUING: In the queue, before its first attempt.
        PREPARING: Claimed; no span of the attempt has arrived yet.
        RUNNING: A span of the attempt has arrived.
        SUCCEEDED: Finished with success.
        FAILED: Finished with a failure that is not retried.
        CANCELLED: Finished by a cancellation.
        REQUEUING: In the queue again, for a retry.
        UNRECOGNIZED: A status of a newer server. Treat it as not finished.
    """

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
        """Whether the status is succeeded, failed or cancelled."""
        return self in _FINISHED


_FINISHED = (RolloutStatus.SUCCEEDED, RolloutStatus.FAILED, RolloutStatus.CANCELLED)


class RolloutMode(str, Enum):
    """Purpose of a rollout.

    Attributes:
        TRAIN: Training.
        VAL: Validation.
        TEST: Test.
        UNRECOGNIZED: A mode of a newer server.
    """

    TRAIN = "train"
    VAL = "val"
    TEST = "test"
    UNRECOGNIZED = "unrecognized"


class AttemptStatus(str, Enum):
    """Status of an attempt.

    Attributes:
        PREPARING: Claimed; no span has arrived yet.
        RUNNING: A span has arrived.
        SUCCEEDED: Reported as succeeded.
        FAILED: Reported as failed.
        TIMEOUT: Ended by the watchdog after the config's timeout.
        UNRESPONSIVE: Ended by the watchdog after the config's unresponsive timeout. A span or heartbeat revives it,
            unless its rollout has finished.
        UNRECOGNIZED: A status of a newer server. Treat it as not finished.
    """

    PREPARING = "preparing"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMEOUT = "timeout"
    UNRESPONSIVE = "unresponsive"
    UNRECOGNIZED = "unrecognized"


class GroupStatus(str, Enum):
    """Status of a group.

    Attributes:
        OPEN: It waits for members, or for members to finish.
        COMPLETE: It can be trained on.
        UNRECOGNIZED: A status of a newer server. Treat it as not complete.
    """

    OPEN = "open"
    COMPLETE = "complete"
    UNRECOGNIZED = "unrecognized"


class GroupDeadlineAction(str, Enum):
    """What happens at the deadline of a group to members that have not finished.

    Attributes:
        CANCEL_REST: They are cancelled, so the group completes at its deadline.
        KEEP_WAITING: Nothing: the group completes when the members that it has have finished.
        UNRECOGNIZED: An action of a newer server.
    """

    CANCEL_REST = "cancel_rest"
    KEEP_WAITING = "keep_waiting"
    UNRECOGNIZED = "unrecognized"


class ConsumerUnit(str, Enum):
    """What a consumer delivers.

    Attributes:
        ROLLOUT: Finished rollouts.
        GROUP: Complete groups, with their members.
        UNRECOGNIZED: A unit of a newer server.
    """

    ROLLOUT = "rollout"
    GROUP = "group"
    UNRECOGNIZED = "unrecognized"


class StaleAction(str, Enum):
    """What a consumer does with stale items.

    Attributes:
        SKIP: They are counted as skipped and never delivered.
        DELIVER: They are delivered like others.
        UNRECOGNIZED: An action of a newer server.
    """

    SKIP = "skip"
    DELIVER = "deliver"
    UNRECOGNIZED = "unrecognized"


class DeliveryState(str, Enum):
    """State of an item that was delivered and is not acknowledged.

    Attributes:
        DELIVERED: Its deadline runs.
        REDELIVERY: Its deadline passed, or it was released: the next pull delivers it again.
        SET_ASIDE: It was delivered as often as the consumer allows, and waits for an acknowledgement or a release.
        UNRECOGNIZED: A state of a newer server.
    """

    DELIVERED = "delivered"
    REDELIVERY = "redelivery"
    SET_ASIDE = "set_aside"
    UNRECOGNIZED = "unrecognized"


class AckOutcome(str, Enum):
    """What becomes of the items of acknowledged deliveries.

    Attributes:
        CONSUMED: They are done, and never delivered again.
        RELEASED: They are delivered again at once.
        DROPPED: They are unusable, and never delivered again.
        UNRECOGNIZED: An outcome of a newer server.
    """

    CONSUMED = "consumed"
    RELEASED = "released"
    DROPPED = "dropped"
    UNRECOGNIZED = "unrecognized"


class StopReason(str, Enum):
    """Why a runner should stop an attempt.

    Attributes:
        ROLLOUT_CANCELLED: The rollout was cancelled.
        ROLLOUT_FINISHED: The rollout has finished in another way.
        SUPERSEDED: The rollout has a newer attempt.
        UNKNOWN_ATTEMPT: The attempt does not exist.
        UNRECOGNIZED: A reason of a newer server. Stop all the same.
    """

    ROLLOUT_CANCELLED = "rollout_cancelled"
    ROLLOUT_FINISHED = "rollout_finished"
    SUPERSEDED = "superseded"
    UNKNOWN_ATTEMPT = "unknown_attempt"
    UNRECOGNIZED = "unrecognized"


class WorkerStatus(str, Enum):
    """Status of a worker.

    Attributes:
        UNKNOWN: Nothing is known: it has sent one heartbeat only, or the watchdog ended its last attempt.
        IDLE: It has no live attempt.
        BUSY: It has a live attempt.
        UNRECOGNIZED: A status of a newer server. Treat it as unknown.
    """

    UNKNOWN = "unknown"
    IDLE = "idle"
    BUSY = "busy"
    UNRECOGNIZED = "unrecognized"


class TemplateEngine(str, Enum):
    """How a prompt template is filled in.

    Attributes:
        F_STRING: By Python's `str.format`, without access to private attributes.
        JINJA: By Jinja, in its sandbox.
        POML: By POML, which can read files: for trusted templates only.
        UNRECOGNIZED: An engine of a newer server.
    """

    F_STRING = "f_string"
    JINJA = "jinja"
    POML = "poml"
    UNRECOGNIZED = "unrecognized"


class Durability(str, Enum):
    """What an answered write survives.

    Attributes:
        NONE: Nothing: the store is in memory.
        RELAXED: The end of the server's process.
        FULL: A power failure as well.
        UNRECOGNIZED: A durability of a newer server.
    """

    NONE = "none"
    RELAXED = "relaxed"
    FULL = "full"
    UNRECOGNIZED = "unrecognized"
