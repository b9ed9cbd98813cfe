"""Answers to request ids, for as long as a caller may repeat them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from lightningstore.service.rules.errors import RequestIdReused
from lightningstore.service.rules.ids import check_request_id, digest
from lightningstore.service.rules.rows import RequestRow
from lightningstore.service.rules.times import NANOS
from lightningstore.v1.rollout_pb2 import Rollout

R = TypeVar("R", bound=Message)

KEPT_NS = 600 * NANOS
SWEEP_NS = 10 * NANOS
#: Maximum number of old answers that each new one removes, so that no call removes all of them.
FORGOTTEN_AT_ONCE = 1000


class Requests:
    """Answers by method and request id. Rollouts are stored as ids only, so an answer is small.

    Their age is measured in server run time, with the monotonic clock. Neither setting the wall
    clock nor a long downtime turns a repeat into a second write.
    """

    def __init__(self, rows: Sequence[RequestRow] = (), now: float = 0.0) -> None:
        """Load the answers of earlier processes, oldest first.

        `now` is the monotonic time in seconds.
        """
        self._rows: dict[tuple[str, str], RequestRow] = {}
        self._by_age: deque[RequestRow] = deque()
        self._swept_ns = rows[-1].time_ns if rows else 0
        self._offset_ns = self._swept_ns - int(now * NANOS)
        for row in rows:
            self._keep(row)

    def find(self, method: str, request: Message, known: int | None = None) -> bytes | None:
        """Return the stored answer, or None for a new request id.

        `known` is the digest of the request if the caller has it.

        Raises:
            RequestIdReused, FieldInvalid
        """
        request_id: str = request.request_id  # type: ignore[attr-defined]
        if not request_id:
            return None
        check_request_id(request_id)
        row = self._rows.get((method, request_id))
        if row is None:
            return None
        if row.digest != (digest(request) if known is None else known):
            raise RequestIdReused(request_id)
        return row.answer

    def add(
        self, method: str, request: Message, answer: Message, now: float, known: int | None = None
    ) -> RequestRow:
        """Store an answer, given at a monotonic time in seconds; return it in its stored form."""
        request_id: str = request.request_id  # type: ignore[attr-defined]
        time_ns = self._time_ns(now)
        number = digest(request) if known is None else known
        row = RequestRow(method, request_id, number, answer.SerializeToString(), time_ns)
        self._keep(row)
        return row

    def forget(self, now: float) -> int:
        """Drop old answers; return the time before which the back end must drop them too, or 0."""
        now_ns = self._time_ns(now)
        for _ in range(FORGOTTEN_AT_ONCE):
            if not self._by_age or self._by_age[0].time_ns >= now_ns - KEPT_NS:
                break
            row = self._by_age.popleft()
            if self._rows.get((row.method, row.request_id)) is row:
                del self._rows[row.method, row.request_id]
        if now_ns - self._swept_ns < SWEEP_NS:
            return 0
        self._swept_ns = now_ns
        return now_ns - KEPT_NS

    def _time_ns(self, now: float) -> int:
        return self._offset_ns + int(now * NANOS)

    def _keep(self, row: RequestRow) -> None:
        self._rows[row.method, row.request_id] = row
        self._by_age.append(row)


def rollouts_of(answer: Message) -> list[Rollout]:
    """Return the rollouts of an answer that holds one or several."""
    named: Any = answer
    return list(named.rollouts) if hasattr(named, "rollouts") else [named.rollout]


def references(reply: R) -> R:
    """Return the answer with its rollouts reduced to the ids of rollout and attempt."""
    kept: Any = type(reply)()
    for rollout in rollouts_of(reply):
        refer(kept.rollouts.add() if hasattr(kept, "rollouts") else kept.rollout, rollout)
    return cast("R", kept)


def refer(reference: Rollout, rollout: Rollout) -> None:
    """Fill a message with the ids of a rollout and its latest attempt."""
    reference.rollout_id = rollout.rollout_id
    if rollout.latest_attempt_id:
        reference.latest_attempt.attempt_id = rollout.latest_attempt_id
