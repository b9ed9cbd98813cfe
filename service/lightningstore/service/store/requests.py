"""Request ids and what they were answered, for as long as a caller may repeat them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from google.protobuf.message import Message
from lightningstore.service.errors import RequestIdReused
from lightningstore.service.records import NANOS, check_request_id, digest
from lightningstore.service.storage.base import RequestRow

KEPT_NS = 600 * NANOS
SWEEP_NS = 10 * NANOS


class Requests:
    """Answers by method and request id. Rollouts are kept as ids alone, so an answer is small."""

    def __init__(self, rows: Iterable[RequestRow] = ()) -> None:
        """Take what an earlier process answered."""
        self._rows: dict[tuple[str, str], RequestRow] = {}
        self._by_age: deque[RequestRow] = deque()
        self._swept_ns = 0
        for row in rows:
            self._keep(row)

    def find(self, method: str, request: Message) -> bytes | None:
        """Return what was answered, None for a new request id. Raises RequestIdReused, FieldInvalid."""
        request_id: str = request.request_id  # type: ignore[attr-defined]
        if not request_id:
            return None
        check_request_id(request_id)
        row = self._rows.get((method, request_id))
        if row is None:
            return None
        if row.digest != digest(request):
            raise RequestIdReused(request_id)
        return row.answer

    def add(self, method: str, request: Message, answer: Message, now_ns: int) -> RequestRow:
        """Keep an answer; returns it as it is stored."""
        request_id: str = request.request_id  # type: ignore[attr-defined]
        row = RequestRow(method, request_id, digest(request), answer.SerializeToString(), now_ns)
        self._keep(row)
        return row

    def forget(self, now_ns: int) -> int:
        """Drop what is too old; returns the time before which the back end may drop it too, or 0."""
        while self._by_age and self._by_age[0].time_ns < now_ns - KEPT_NS:
            row = self._by_age.popleft()
            if self._rows.get((row.method, row.request_id)) is row:
                del self._rows[row.method, row.request_id]
        if now_ns - self._swept_ns < SWEEP_NS:
            return 0
        self._swept_ns = now_ns
        return now_ns - KEPT_NS

    def _keep(self, row: RequestRow) -> None:
        self._rows[row.method, row.request_id] = row
        self._by_age.append(row)
