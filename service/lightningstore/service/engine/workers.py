"""Workers and their current attempts. A pure data structure that maintains one rule.

A worker is BUSY while a live attempt names it, UNKNOWN after the expiry of its last attempt until
it is seen again, and IDLE otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.worker_pb2 import (
    WORKER_STATUS_BUSY,
    WORKER_STATUS_IDLE,
    WORKER_STATUS_UNKNOWN,
    Worker,
)


class Assignment(Protocol):
    """An attempt that a worker works on."""

    #: Ascends from attempt to attempt.
    key: int
    record: Attempt


class WorkerState:
    """A worker. Unlike other records it is changed in place; answers and rows get copies."""

    __slots__ = ("attempts", "record")

    def __init__(self, record: Worker) -> None:
        self.record = record
        #: The live attempts that name it, by key, the newest last.
        self.attempts: dict[int, Assignment] = {}


class Workforce:
    """All workers, in memory, because there are few."""

    def __init__(self, records: Iterable[Worker] = ()) -> None:
        """Load the stored workers; their assignments are added by `resume`."""
        self.workers: dict[str, WorkerState] = {}
        self.counts: dict[int, int] = {}
        #: Workers that changed since this was last cleared.
        self.touched: dict[str, Worker] = {}
        for record in records:
            self.workers[record.worker_id] = WorkerState(record)
            self.counts[record.status] = self.counts.get(record.status, 0) + 1

    def find(self, worker_id: str) -> Worker | None:
        """Return a worker's current record, or None."""
        worker = self.workers.get(worker_id)
        return worker.record if worker is not None else None

    def resume(self, attempt: Assignment) -> None:
        """Record a live attempt that was loaded."""
        worker = self.workers.get(attempt.record.worker_id)
        if worker is not None:
            _add(worker, attempt)

    def assign(self, attempt: Assignment, now: Timestamp) -> None:
        """Record that an attempt has become live, or now names this worker."""
        worker_id = attempt.record.worker_id
        if not worker_id:
            return
        worker = self._touch(worker_id)
        if not worker.attempts:
            worker.record.last_busy_time.CopyFrom(now)
            self._set_status(worker, WORKER_STATUS_BUSY)
        _add(worker, attempt)
        self._show_newest(worker)

    def release(
        self, attempt: Assignment, worker_id: str, now: Timestamp, *, verdict: bool
    ) -> None:
        """Record that an attempt has ended (`verdict`: by an expiry), or now names another worker."""
        known = self.workers.get(worker_id)
        if known is None or attempt.key not in known.attempts:
            return
        worker = self._touch(worker_id)
        del worker.attempts[attempt.key]
        if worker.attempts:
            self._show_newest(worker)
            return
        worker.record.ClearField("current_rollout_id")
        worker.record.ClearField("current_attempt_id")
        if verdict:
            self._set_status(worker, WORKER_STATUS_UNKNOWN)
        else:
            self._rest(worker, now)

    def heard_from(self, worker_id: str, now: Timestamp) -> None:
        """Record a span or heartbeat for an attempt: a worker that was UNKNOWN becomes IDLE."""
        worker = self.workers.get(worker_id)
        if worker is not None and worker.record.status == WORKER_STATUS_UNKNOWN:
            self._rest(self._touch(worker_id), now)

    def asked(self, worker_id: str, now: Timestamp, *, in_vain: bool) -> None:
        """Record a request for rollouts; a worker that got none is IDLE unless it has others."""
        worker = self._touch(worker_id)
        worker.record.last_dequeue_time.CopyFrom(now)
        if in_vain and not worker.attempts and worker.record.status != WORKER_STATUS_IDLE:
            self._rest(worker, now)

    def beat(
        self, worker_id: str, stats_json: bytes, publish_number: int, now: Timestamp
    ) -> Worker:
        """Record a heartbeat and return the record. A new worker starts as UNKNOWN.

        Empty statistics, and the publish number 0, leave what is stored.
        """
        known = worker_id in self.workers
        worker = self._touch(worker_id)
        worker.record.last_heartbeat_time.CopyFrom(now)
        if stats_json:
            worker.record.stats_json = stats_json
        if publish_number:
            worker.record.publish_number = publish_number
        if known and worker.record.status == WORKER_STATUS_UNKNOWN:
            self._rest(worker, now)
        return worker.record

    def _touch(self, worker_id: str) -> WorkerState:
        worker = self.workers.get(worker_id)
        if worker is None:
            worker = WorkerState(Worker(worker_id=worker_id, status=WORKER_STATUS_UNKNOWN))
            self.workers[worker_id] = worker
            self.counts[WORKER_STATUS_UNKNOWN] = self.counts.get(WORKER_STATUS_UNKNOWN, 0) + 1
        self.touched[worker_id] = worker.record
        return worker

    def _rest(self, worker: WorkerState, now: Timestamp) -> None:
        worker.record.last_idle_time.CopyFrom(now)
        self._set_status(worker, WORKER_STATUS_IDLE)

    def _set_status(self, worker: WorkerState, status: int) -> None:
        self.counts[worker.record.status] -= 1
        self.counts[status] = self.counts.get(status, 0) + 1
        worker.record.status = status  # type: ignore[assignment]

    @staticmethod
    def _show_newest(worker: WorkerState) -> None:
        newest = worker.attempts[next(reversed(worker.attempts))].record
        worker.record.current_rollout_id = newest.rollout_id
        worker.record.current_attempt_id = newest.attempt_id


def _add(worker: WorkerState, attempt: Assignment) -> None:
    """Add an attempt in the order of keys.

    The newest one is needed at every claim and every end.
    """
    attempts = worker.attempts
    late = bool(attempts) and attempt.key < next(reversed(attempts))  # an older one lives again
    attempts[attempt.key] = attempt
    if late:
        worker.attempts = dict(sorted(attempts.items()))
