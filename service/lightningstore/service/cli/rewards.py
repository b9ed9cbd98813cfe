"""The reward of an attempt: the one of its record, or the last one in its spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from lightningstore.service.cli.connection import Connection

#: What the spans of rewards that the clients write have in their names.
_NAME = "agentlightning."
#: How many of the last spans are looked at for others.
_LAST = 16
#: What may stand in the way: the token, evicted spans, a rollout removed since, a damaged record.
_UNREADABLE = ("PERMISSION_DENIED", "FAILED_PRECONDITION", "NOT_FOUND", "DATA_LOSS")


def quick_reward(server: Connection, attempt: Any) -> float | None:
    """Return the reward of an attempt's record, else one from a few of its spans.

    Those are the spans named for it, else the last ones. Records have a reward since the server keeps it there.
    """
    if attempt.HasField("reward"):
        return float(attempt.reward)
    if not attempt.span_count:
        return None
    last_first = {"order_by": "sequence_id desc", "limit": _LAST}
    named = {**last_first, "name": {"contains": _NAME}}
    for query in (named, last_first):
        reward = _reward(server, attempt, query)
        if reward is not None:
            return reward
    return None


def exact_reward(server: Connection, attempt: Any) -> float | None:
    """Return the reward of an attempt's record, else the last one in all its spans."""
    if attempt.HasField("reward"):
        return float(attempt.reward)
    return _reward(server, attempt, {}) if attempt.span_count else None


def _reward(server: Connection, attempt: Any, query: dict[str, Any]) -> float | None:
    from lightningstore.client import Span, find_final_reward  # noqa: PLC0415
    from lightningstore.v1 import span_pb2  # noqa: PLC0415

    request = span_pb2.QuerySpansRequest(
        rollout_id=attempt.rollout_id, attempt_id=attempt.attempt_id, **query
    )
    try:
        return find_final_reward(
            Span(span, batch, sequence_id)
            for answer in server.stream(request)
            for batch in answer.batches
            for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=True)
        )
    except grpc.RpcError as error:
        if error.code().name in _UNREADABLE:
            return None
        raise
