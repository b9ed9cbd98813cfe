"""Requests about rollouts, claims, attempts and workers, and the conversion of their responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from lightningstore.client._calls.call import Call
from lightningstore.client._values import convert
from lightningstore.client._values.attempts import ATTEMPT_STATUS, STOP_REASON
from lightningstore.client._values.enums import StopReason, Unset
from lightningstore.client._values.rewards import finite
from lightningstore.client._values.rollouts import (
    FILTER_LOGIC,
    ROLLOUT_MODE,
    ROLLOUT_STATUS,
    config_of,
)
from lightningstore.client._values.text import names_fields, naming
from lightningstore.client._values.workers import WORKER_STATUS
from lightningstore.client.values import (
    UNSET,
    Attempt,
    AttemptUpdate,
    DeleteResult,
    Failure,
    GroupSpec,
    HeartbeatReply,
    Page,
    PauseResult,
    Rollout,
    RolloutConfig,
    RolloutSpec,
    Stop,
    Worker,
)
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, worker_pb2


def or_new(request_id: str | None) -> str:
    """Return the caller's request id, or a new one, which no other call shares."""
    return convert.new_request_id() if request_id is None else request_id


def _rollouts(answer: Any) -> list[Rollout]:
    return [Rollout(message) for message in answer.rollouts]


def _rollout(answer: Any) -> Rollout:
    return Rollout(answer.rollout)


@names_fields
def enqueue_rollouts(
    specs: Iterable[RolloutSpec | Mapping[str, Any]],
    groups: Iterable[GroupSpec | Mapping[str, Any]],
    request_id: str | None,
) -> Call[list[Rollout]]:
    """EnqueueRollouts. Each rollout has an id."""
    one = isinstance(specs, RolloutSpec | Mapping | str | bytes)
    if one or not isinstance(specs, Iterable):
        raise TypeError(
            f"specs must be a list of RolloutSpec objects or mappings, not {type(specs).__name__}; "
            "enqueue_rollout adds one rollout"
        )
    request = rollout_pb2.EnqueueRolloutsRequest(request_id=or_new(request_id))
    for index, spec in enumerate(specs):
        with naming(f"rollouts[{index}]"):
            message = RolloutSpec.of(spec).to_message()
        if not message.rollout_id:
            message.rollout_id = convert.new_rollout_id()
        request.rollouts.append(message)
    if isinstance(groups, GroupSpec | Mapping | str | bytes):
        raise TypeError(
            f"groups must be a list of GroupSpec objects or mappings, not {type(groups).__name__}"
        )
    for index, group in enumerate(groups):
        with naming(f"groups[{index}]"):
            request.groups.append(GroupSpec.of(group).to_message())
    return Call("EnqueueRollouts", request, _rollouts)


@names_fields
def start_rollout(spec: RolloutSpec, worker_id: str, request_id: str | None) -> Call[Rollout]:
    """StartRollout. The server creates a missing id; the request id makes a retry safe."""
    request = claim_pb2.StartRolloutRequest(
        rollout=spec.to_message(), worker_id=worker_id, request_id=or_new(request_id)
    )
    return Call("StartRollout", request, _rollout)


@names_fields
def dequeue_rollouts(
    limit: int,
    modes: Iterable[str | int | None],
    worker_id: str,
    wait: float,
    request_id: str | None,
    queues: Iterable[str] = (),
) -> Call[list[Rollout]]:
    """DequeueRollouts."""
    request = claim_pb2.DequeueRolloutsRequest(
        limit=limit,
        modes=convert.to_numbers(ROLLOUT_MODE, modes),
        worker_id=worker_id,
        request_id=or_new(request_id),
        queues=convert.ids(queues, "queues"),
    )
    if wait:
        request.wait.CopyFrom(convert.to_duration(wait))
    return Call("DequeueRollouts", request, _rollouts, wait=max(wait, 0.0))


@names_fields
def start_attempt(rollout_id: str, worker_id: str, request_id: str | None) -> Call[Rollout]:
    """StartAttempt."""
    request = claim_pb2.StartAttemptRequest(
        rollout_id=rollout_id, worker_id=worker_id, request_id=or_new(request_id)
    )
    return Call("StartAttempt", request, _rollout)


@names_fields
def pause_claims(reason: str, request_id: str | None) -> Call[PauseResult]:
    """PauseClaims."""
    request = claim_pb2.PauseClaimsRequest(reason=reason, request_id=or_new(request_id))
    return Call("PauseClaims", request, PauseResult.of_pause)


@names_fields
def resume_claims(request_id: str | None) -> Call[PauseResult]:
    """ResumeClaims."""
    request = claim_pb2.ResumeClaimsRequest(request_id=or_new(request_id))
    return Call("ResumeClaims", request, PauseResult.of_resume)


@names_fields
def update_attempt(
    rollout_id: str,
    attempt_id: str,
    fields: Mapping[str, Any],
    sent_span_count: int | None,
    request_id: str | None,
) -> Call[AttemptUpdate]:
    """UpdateAttempt. `fields`: values by name, UNSET for unchanged ones.

    By the contract a retry is safe, so no request id is created, which the server would have to keep.
    """
    request = attempt_pb2.UpdateAttemptRequest(
        attempt=attempt_pb2.Attempt(rollout_id=rollout_id, attempt_id=attempt_id),
        sent_span_count=sent_span_count,
        request_id=request_id or "",
    )
    _set_attempt(request, fields)
    return Call("UpdateAttempt", request, _attempt_update)


def _set_attempt(request: attempt_pb2.UpdateAttemptRequest, fields: Mapping[str, Any]) -> None:
    status, failure, worker_id = fields["status"], fields["failure"], fields["worker_id"]
    heartbeat: datetime | Unset | None = fields["last_heartbeat_time"]
    record, paths = request.attempt, request.update_mask.paths
    if status is not UNSET:
        record.status = convert.to_number(ATTEMPT_STATUS, status)  # type: ignore[assignment]
        paths.append("status")
    if failure is not UNSET:
        if failure is not None:
            if not isinstance(failure, Failure):
                raise TypeError(f"failure must be a Failure or None, not {type(failure).__name__}")
            record.failure.CopyFrom(failure.to_message())
        paths.append("failure")
    if worker_id is not UNSET:
        record.worker_id = worker_id or ""
        paths.append("worker_id")
    if heartbeat is not UNSET:
        if heartbeat is not None:
            with naming("last_heartbeat_time"):
                record.last_heartbeat_time.CopyFrom(convert.to_timestamp(heartbeat))
        paths.append("last_heartbeat_time")
    if fields["metadata"] is not UNSET:
        record.metadata_json = convert.to_json_object(fields["metadata"], "metadata")
        paths.append("metadata_json")
    if fields["reward"] is not UNSET:
        if fields["reward"] is not None:
            record.reward = finite(fields["reward"])
        paths.append("reward")
    _set_scores(request, fields["scores"])
    if not paths:
        request.ClearField("update_mask")


def _set_scores(request: attempt_pb2.UpdateAttemptRequest, scores: Any) -> None:
    if scores is None:
        request.update_mask.paths.append("scores")
    elif scores is not UNSET:
        for name, value in scores.items():
            if value is not None:
                request.attempt.scores[name] = finite(value)
            request.update_mask.paths.append(f"scores.{name}")


def _attempt_update(answer: attempt_pb2.UpdateAttemptResponse) -> AttemptUpdate:
    missing = answer.missing_span_count if answer.HasField("missing_span_count") else None
    stop = None
    if answer.stop_reason:
        stop = convert.from_number(StopReason, STOP_REASON, answer.stop_reason)
    return AttemptUpdate(Attempt(answer.attempt), missing, stop)


@names_fields
def list_attempts(rollout_id: str, page_size: int, page_token: str) -> Call[Page[Attempt]]:
    """ListAttempts."""
    request = attempt_pb2.ListAttemptsRequest(
        rollout_id=rollout_id, page_size=page_size, page_token=page_token
    )
    return Call(
        "ListAttempts",
        request,
        lambda answer: Page([Attempt(a) for a in answer.attempts], answer.next_page_token),
    )


@names_fields
def get_attempt(rollout_id: str, attempt_id: str) -> Call[Attempt]:
    """GetAttempt."""
    request = attempt_pb2.GetAttemptRequest(rollout_id=rollout_id, attempt_id=attempt_id)
    return Call("GetAttempt", request, lambda answer: Attempt(answer.attempt))


@names_fields
def get_rollout(rollout_id: str) -> Call[Rollout]:
    """GetRollout."""
    return Call("GetRollout", rollout_pb2.GetRolloutRequest(rollout_id=rollout_id), _rollout)


@names_fields
def list_rollouts(
    *,
    statuses: Iterable[str | int],
    rollout_ids: Iterable[str],
    rollout_id_contains: str,
    modes: Iterable[str | int | None],
    group_ids: Iterable[str],
    queues: Iterable[str],
    labels: Mapping[str, str] | None,
    filter_logic: str | int,
    order_by: str,
    min_reward: float | None = None,
    max_reward: float | None = None,
    page_size: int = 0,
    page_token: str = "",
    skip: int = 0,
    include_total_size: bool = False,
    failure_contains: str = "",
    omit_payloads: bool = False,
) -> Call[Page[Rollout]]:
    """ListRollouts."""
    request = rollout_pb2.ListRolloutsRequest(
        statuses=convert.to_numbers(ROLLOUT_STATUS, statuses),
        rollout_ids=convert.ids(rollout_ids, "rollout_ids"),
        rollout_id_contains=rollout_id_contains,
        modes=convert.to_numbers(ROLLOUT_MODE, modes),
        group_ids=convert.ids(group_ids, "group_ids"),
        queues=convert.ids(queues, "queues"),
        labels=convert.labels(labels),
        filter_logic=convert.to_number(FILTER_LOGIC, filter_logic),  # type: ignore[arg-type]
        order_by=order_by,
        min_reward=min_reward,
        max_reward=max_reward,
        page_size=page_size,
        page_token=page_token,
        skip=skip,
        include_total_size=include_total_size,
        failure_contains=failure_contains,
        omit_payloads=omit_payloads,
    )
    return Call("ListRollouts", request, _rollout_page)


def _rollout_page(answer: rollout_pb2.ListRolloutsResponse) -> Page[Rollout]:
    total = answer.total_size if answer.HasField("total_size") else None
    return Page(_rollouts(answer), answer.next_page_token, total)


@names_fields
def update_rollout(
    rollout_id: str, fields: Mapping[str, Any], request_id: str | None
) -> Call[Rollout]:
    """UpdateRollout. `fields`: values by name, UNSET for unchanged ones."""
    request = rollout_pb2.UpdateRolloutRequest(request_id=or_new(request_id))
    record, paths = request.rollout, request.update_mask.paths
    record.rollout_id = rollout_id
    for name, value in fields.items():
        if value is UNSET:
            continue
        path, setter = _ROLLOUT_FIELDS[name]
        setter(record, value)
        paths.append(path)
    if not paths:
        request.ClearField("update_mask")
    return Call("UpdateRollout", request, _rollout)


def _set_config(record: rollout_pb2.Rollout, value: RolloutConfig | None) -> None:
    if value is not None:
        record.config.CopyFrom(config_of(value).to_message())


def _set_input(record: rollout_pb2.Rollout, value: Any) -> None:
    record.input_json = convert.to_json(value, "input")


def _set_metadata(record: rollout_pb2.Rollout, value: Any) -> None:
    record.metadata_json = convert.to_json_object(value, "metadata")


def _set_status(record: rollout_pb2.Rollout, value: Any) -> None:
    record.status = convert.to_number(ROLLOUT_STATUS, value)  # type: ignore[assignment]


def _set_mode(record: rollout_pb2.Rollout, value: Any) -> None:
    record.mode = convert.to_number(ROLLOUT_MODE, value)  # type: ignore[assignment]


def _set_priority(record: rollout_pb2.Rollout, value: int | None) -> None:
    record.priority = value or 0


def _set_group_id(record: rollout_pb2.Rollout, value: str | None) -> None:
    record.group_id = value or ""


def _set_queue(record: rollout_pb2.Rollout, value: str | None) -> None:
    record.queue = value or ""


def _set_labels(record: rollout_pb2.Rollout, value: Mapping[str, str] | None) -> None:
    record.labels.update(convert.labels(value))


def _set_resources_id(record: rollout_pb2.Rollout, value: str | None) -> None:
    record.resources_id = value or ""


_ROLLOUT_FIELDS: dict[str, tuple[str, Any]] = {
    "status": ("status", _set_status),
    "input": ("input_json", _set_input),
    "mode": ("mode", _set_mode),
    "priority": ("priority", _set_priority),
    "group_id": ("group_id", _set_group_id),
    "resources_id": ("resources_id", _set_resources_id),
    "config": ("config", _set_config),
    "metadata": ("metadata_json", _set_metadata),
    "queue": ("queue", _set_queue),
    "labels": ("labels", _set_labels),
}


@names_fields
def cancel_rollouts(rollout_ids: Iterable[str], request_id: str | None) -> Call[list[Rollout]]:
    """CancelRollouts. A retry is safe without a request id."""
    request = rollout_pb2.CancelRolloutsRequest(
        rollout_ids=convert.ids(rollout_ids, "rollout_ids"), request_id=request_id or ""
    )
    return Call("CancelRollouts", request, _rollouts)


@names_fields
def delete_rollouts(rollout_ids: Iterable[str]) -> Call[DeleteResult]:
    """DeleteRollouts."""
    request = rollout_pb2.DeleteRolloutsRequest(rollout_ids=convert.ids(rollout_ids, "rollout_ids"))
    return Call("DeleteRollouts", request, DeleteResult.from_message)


@names_fields
def heartbeat(
    worker_id: str,
    stats: Any,
    attempts: Iterable[Attempt | Rollout | Sequence[str]],
    publish_number: int | None,
) -> Call[HeartbeatReply]:
    """Heartbeat."""
    request = worker_pb2.HeartbeatRequest(
        worker_id=worker_id,
        stats_json=b"" if stats is None else convert.to_json(stats, "stats"),
        publish_number=publish_number or 0,
    )
    for attempt in attempts:
        rollout_id, attempt_id = _reference(attempt)
        request.attempts.add(rollout_id=rollout_id, attempt_id=attempt_id)
    return Call("Heartbeat", request, _heartbeat_reply)


def _reference(attempt: Attempt | Rollout | Sequence[str]) -> tuple[str, str]:
    if isinstance(attempt, Attempt):
        return attempt.rollout_id, attempt.attempt_id
    if isinstance(attempt, Rollout):
        return attempt.rollout_id, attempt.latest_attempt_id
    rollout_id, attempt_id = attempt
    return rollout_id, attempt_id


def _heartbeat_reply(answer: worker_pb2.HeartbeatResponse) -> HeartbeatReply:
    return HeartbeatReply(Worker(answer.worker), [Stop.from_message(s) for s in answer.stops])


@names_fields
def get_worker(worker_id: str) -> Call[Worker]:
    """GetWorker."""
    request = worker_pb2.GetWorkerRequest(worker_id=worker_id)
    return Call("GetWorker", request, lambda answer: Worker(answer.worker))


@names_fields
def list_workers(
    *,
    statuses: Iterable[str | int],
    worker_id_contains: str,
    min_publish_number: int,
    filter_logic: str | int,
    order_by: str,
    page_size: int,
    page_token: str,
) -> Call[Page[Worker]]:
    """ListWorkers."""
    request = worker_pb2.ListWorkersRequest(
        statuses=convert.to_numbers(WORKER_STATUS, statuses),
        worker_id_contains=worker_id_contains,
        min_publish_number=min_publish_number,
        filter_logic=convert.to_number(FILTER_LOGIC, filter_logic),  # type: ignore[arg-type]
        order_by=order_by,
        page_size=page_size,
        page_token=page_token,
    )
    return Call(
        "ListWorkers",
        request,
        lambda answer: Page([Worker(w) for w in answer.workers], answer.next_page_token),
    )
