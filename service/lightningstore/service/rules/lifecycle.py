"""The two status machines and the retry rule: records in, a Transition out. Pure.

One function per event. No function reads a clock, generates an id or does I/O; `now` and `dice` (a
random number from 0 to 1, for jitter) are arguments. The tables are in the specification, section
2; docs/state_machine.md draws them.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import TransitionNotAllowed
from lightningstore.service.rules.statuses import FINISHED, LIVE_ATTEMPT, QUEUED
from lightningstore.service.rules.times import nanoseconds, seconds
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_FAILED,
    ATTEMPT_STATUS_PREPARING,
    ATTEMPT_STATUS_RUNNING,
    ATTEMPT_STATUS_SUCCEEDED,
    ATTEMPT_STATUS_TIMEOUT,
    ATTEMPT_STATUS_UNRESPONSIVE,
    STOP_REASON_ROLLOUT_CANCELLED,
    STOP_REASON_ROLLOUT_FINISHED,
    STOP_REASON_SUPERSEDED,
    STOP_REASON_UNSPECIFIED,
    Attempt,
    AttemptStatus,
    Failure,
)
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_CANCELLED,
    ROLLOUT_STATUS_FAILED,
    ROLLOUT_STATUS_PREPARING,
    ROLLOUT_STATUS_QUEUING,
    ROLLOUT_STATUS_REQUEUING,
    ROLLOUT_STATUS_RUNNING,
    ROLLOUT_STATUS_SUCCEEDED,
    Rollout,
    RolloutConfig,
    RolloutStatus,
)

DEFAULT_MAX_DELAY = 3600.0
_WORD = (ATTEMPT_STATUS_SUCCEEDED, ATTEMPT_STATUS_FAILED)
_ENDED = (*_WORD, ATTEMPT_STATUS_TIMEOUT, ATTEMPT_STATUS_UNRESPONSIVE)
_WAITS_FOR_LIFE = (ROLLOUT_STATUS_QUEUING, ROLLOUT_STATUS_PREPARING, ROLLOUT_STATUS_REQUEUING)


class Queue(Enum):
    """Effect of an event on the queue position of a rollout."""

    KEEP = 0
    TAIL = 1
    OUT = 2


class Transition(NamedTuple):
    """The changes of an event. A record that is None does not change."""

    attempt: Attempt | None = None
    rollout: Rollout | None = None
    queue: Queue = Queue.KEEP
    #: Seconds that the rollout waits in the queue before it can be claimed.
    delay: float = 0.0
    #: Whether the rollout finishes, and therefore gets a completion number.
    finished: bool = False


NOTHING = Transition()


def is_live(attempt: Attempt) -> bool:
    """Return whether an attempt is PREPARING or RUNNING."""
    return attempt.status in LIVE_ATTEMPT


def is_finished(rollout: Rollout) -> bool:
    """Return whether a rollout is SUCCEEDED, FAILED or CANCELLED."""
    return rollout.status in FINISHED


def claim(rollout: Rollout, attempt: Attempt) -> Transition:
    """Apply a claim: the caller has created the attempt with its sequence number.

    Reopens a succeeded or failed rollout.

    Raises:
        TransitionNotAllowed: The rollout is cancelled.
    """
    if rollout.status == ROLLOUT_STATUS_CANCELLED:
        raise _rollout_stays(rollout, ROLLOUT_STATUS_PREPARING)
    changed = evolve(
        rollout,
        status=ROLLOUT_STATUS_PREPARING,
        attempt_count=attempt.sequence_number,
        latest_attempt_id=attempt.attempt_id,
        end_time=None,
        completion_number=None,
        end_publish_number=None,
    )
    return Transition(attempt, changed, Queue.OUT)


def heard_from(rollout: Rollout, attempt: Attempt, now: Timestamp, *, by_span: bool) -> Transition:
    """Apply the arrival of a span or a heartbeat for the attempt."""
    status = attempt.status
    if by_span and status == ATTEMPT_STATUS_PREPARING:
        status = ATTEMPT_STATUS_RUNNING
    changed = evolve(attempt, last_heartbeat_time=now)
    if status == ATTEMPT_STATUS_UNRESPONSIVE and not is_finished(rollout):
        status = ATTEMPT_STATUS_RUNNING
        changed.ClearField("end_time")
    changed.status = status
    return _with_rollout_running(rollout, changed)


def report(
    rollout: Rollout,
    attempt: Attempt,
    status: int,
    failure: Failure | None,
    now: Timestamp,
    dice: float,
) -> Transition:
    """Apply a status of the attempt, from its runner or, through `expire`, the watchdog.

    `failure` is allowed only with FAILED.

    Raises:
        TransitionNotAllowed: The outcome of the attempt is final, or the status would be a step
        back.
    """
    if status == attempt.status:
        return NOTHING if failure is None else Transition(evolve(attempt, failure=failure))
    if status == ATTEMPT_STATUS_RUNNING:
        return _report_running(rollout, attempt)
    if status not in _ENDED or _is_final(rollout, attempt):
        raise _attempt_stays(attempt, status)
    changed = _ended(attempt, status, now, failure)
    if rollout.latest_attempt_id != attempt.attempt_id or is_finished(rollout):
        return Transition(changed)
    if status == ATTEMPT_STATUS_SUCCEEDED:
        return _finish(rollout, ROLLOUT_STATUS_SUCCEEDED, now, changed)
    if should_retry(rollout.config, status, attempt.sequence_number, failure):
        if rollout.status == ROLLOUT_STATUS_REQUEUING:
            return Transition(changed)  # it waits for its retry already: once, in the place it has
        delay = backoff_delay(rollout.config, attempt.sequence_number, dice)
        requeued = evolve(rollout, status=ROLLOUT_STATUS_REQUEUING)
        return Transition(changed, requeued, Queue.TAIL, delay)
    return _finish(rollout, ROLLOUT_STATUS_FAILED, now, changed)


def expire(
    rollout: Rollout, attempt: Attempt, status: int, now: Timestamp, dice: float
) -> Transition:
    """Apply the expiry of a live attempt: TIMEOUT or UNRESPONSIVE."""
    if not is_live(attempt):
        return NOTHING
    return report(rollout, attempt, status, None, now, dice)


def finish_superseded(
    rollout: Rollout, attempt: Attempt, latest: Attempt, now: Timestamp
) -> Transition:
    """Apply the finish of a rollout to a live attempt that its own worker has superseded.

    Without a deadline the attempt ends with the rollout, as UNRESPONSIVE: its worker has continued
    with the latest attempt, and would be shown as busy with this one until it becomes unresponsive.
    A late outcome is still recorded.
    """
    config = rollout.config
    if (
        not is_live(attempt)
        or attempt.attempt_id == latest.attempt_id
        or not attempt.worker_id
        or attempt.worker_id != latest.worker_id
        or config.HasField("timeout")
        or config.HasField("unresponsive_timeout")
    ):
        return NOTHING
    return Transition(_ended(attempt, ATTEMPT_STATUS_UNRESPONSIVE, now))


def set_status(rollout: Rollout, status: int, now: Timestamp) -> Transition:
    """Apply a status that the caller sets on the rollout.

    Final statuses finish it; QUEUING and REQUEUING put it into the queue. Other statuses are set
    only by claims, spans and heartbeats.

    Raises:
        TransitionNotAllowed: The status cannot be set by the caller.
    """
    if status == rollout.status:
        return NOTHING
    if status in FINISHED and not is_finished(rollout):
        return _finish(rollout, status, now, None)
    if status in QUEUED:
        changed = evolve(
            rollout, status=status, end_time=None, completion_number=None, end_publish_number=None
        )
        return Transition(None, changed, Queue.TAIL)
    raise _rollout_stays(rollout, status)


def stop_reason(rollout: Rollout, attempt: Attempt) -> int:
    """Return why the attempt's runner should stop, or STOP_REASON_UNSPECIFIED to continue."""
    if rollout.status == ROLLOUT_STATUS_CANCELLED:
        return STOP_REASON_ROLLOUT_CANCELLED
    if rollout.latest_attempt_id != attempt.attempt_id:
        return STOP_REASON_SUPERSEDED
    if is_finished(rollout):
        return STOP_REASON_ROLLOUT_FINISHED
    return STOP_REASON_UNSPECIFIED


def decided(rollout: Rollout, attempt: Attempt, status: int) -> bool:
    """Return whether this is the outcome with which the attempt has already decided its rollout."""
    return status == attempt.status and _is_final(rollout, attempt)


def should_retry(
    config: RolloutConfig, status: int, sequence: int, failure: Failure | None
) -> bool:
    """Return whether an attempt with this outcome is retried."""
    if failure is not None and failure.HasField("retryable") and not failure.retryable:
        return False
    return status in config.retry_condition and sequence < max(1, config.max_attempts)


def backoff_delay(config: RolloutConfig, sequence: int, dice: float) -> float:
    """Return the delay in seconds of the retry after attempt number `sequence`."""
    backoff = config.retry_backoff
    initial = seconds(backoff.initial_delay)
    if initial == 0.0:
        return 0.0
    longest = seconds(backoff.max_delay) if backoff.HasField("max_delay") else DEFAULT_MAX_DELAY
    # The exponent is limited: 1e6 ** 50 still fits a double, and the maximum delay applies long
    # before.
    delay = min(longest, initial * (backoff.factor or 1.0) ** min(sequence - 1, 50))
    return delay * (1 + backoff.jitter * (2 * dice - 1))


def _is_final(rollout: Rollout, attempt: Attempt) -> bool:
    """Return whether the reported outcome of the attempt decided its rollout, which makes it final."""
    return (
        attempt.status in _WORD
        and rollout.latest_attempt_id == attempt.attempt_id
        and rollout.status != ROLLOUT_STATUS_CANCELLED
    )


def _report_running(rollout: Rollout, attempt: Attempt) -> Transition:
    revives = attempt.status == ATTEMPT_STATUS_UNRESPONSIVE and not is_finished(rollout)
    if attempt.status != ATTEMPT_STATUS_PREPARING and not revives:
        raise _attempt_stays(attempt, ATTEMPT_STATUS_RUNNING)
    return _with_rollout_running(
        rollout, evolve(attempt, status=ATTEMPT_STATUS_RUNNING, end_time=None)
    )


def _with_rollout_running(rollout: Rollout, attempt: Attempt) -> Transition:
    if (
        attempt.status == ATTEMPT_STATUS_RUNNING
        and rollout.latest_attempt_id == attempt.attempt_id
        and rollout.status in _WAITS_FOR_LIFE
    ):
        return Transition(attempt, evolve(rollout, status=ROLLOUT_STATUS_RUNNING), Queue.OUT)
    return Transition(attempt)


def _finish(rollout: Rollout, status: int, now: Timestamp, attempt: Attempt | None) -> Transition:
    # The clock may have been set back: an end time is never before the start time.
    end_time = _not_before(rollout.start_time, now)
    if attempt is not None:
        end_time = _not_before(attempt.end_time, end_time)
    changed = evolve(rollout, status=status, end_time=end_time)
    return Transition(attempt, changed, Queue.OUT, finished=True)


def _ended(
    attempt: Attempt, status: int, now: Timestamp, failure: Failure | None = None
) -> Attempt:
    end_time = _not_before(attempt.start_time, now)
    return evolve(attempt, status=status, end_time=end_time, failure=failure)


def _not_before(start: Timestamp, now: Timestamp) -> Timestamp:
    """Return the later of two times."""
    if now.seconds > start.seconds:
        return now  # the usual case
    return max(now, start, key=nanoseconds)


def _attempt_stays(attempt: Attempt, status: int) -> TransitionNotAllowed:
    name = AttemptStatus.Name
    what = f"attempt {attempt.attempt_id!r} of rollout {attempt.rollout_id!r}"
    return TransitionNotAllowed(what, name(attempt.status), name(status))  # type: ignore[arg-type]


def _rollout_stays(rollout: Rollout, status: int) -> TransitionNotAllowed:
    name = RolloutStatus.Name
    what = f"rollout {rollout.rollout_id!r}"
    return TransitionNotAllowed(what, name(rollout.status), name(status))  # type: ignore[arg-type]
