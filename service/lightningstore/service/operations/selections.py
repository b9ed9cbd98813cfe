"""The filters of requests that select rollouts."""

from __future__ import annotations

from lightningstore.service.engine.engine import Engine
from lightningstore.service.rules import rewards
from lightningstore.service.rules.checks import check_enum, check_labels
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.v1.rollout_pb2 import (
    FILTER_LOGIC_OR,
    FilterLogic,
    ListRolloutsRequest,
    RolloutMode,
    RolloutStatus,
)
from lightningstore.v1.series_pb2 import GetSeriesRequest

Selection = ListRolloutsRequest | GetSeriesRequest


def check_filters(engine: Engine, request: Selection) -> None:
    """Raise FieldInvalid or BatchTooLarge for invalid filters."""
    for i, status in enumerate(request.statuses):
        check_enum(f"statuses[{i}]", RolloutStatus, status)
    for i, mode in enumerate(request.modes):
        check_enum(f"modes[{i}]", RolloutMode, mode, unspecified=True)
    check_enum("filter_logic", FilterLogic, request.filter_logic, unspecified=True)
    for name in ("rollout_ids", "group_ids", "queues"):
        engine.check_batch(name, len(getattr(request, name)))
    check_labels("labels", request.labels)
    rewards.check_range(request)


def filters_of(request: Selection) -> RolloutQuery:
    """Return the filters of a request as a query in the order of enqueueing."""
    return RolloutQuery(
        statuses=frozenset(request.statuses),
        rollout_ids=frozenset(request.rollout_ids),
        rollout_id_contains=request.rollout_id_contains,
        modes=frozenset(request.modes),
        group_ids=frozenset(request.group_ids),
        queues=frozenset(request.queues),
        labels=frozenset(request.labels.items()),
        reward_range=rewards.range_of(request),
        failure_contains=(
            request.failure_contains if isinstance(request, ListRolloutsRequest) else ""
        ),
        any_of=request.filter_logic == FILTER_LOGIC_OR,
    )
