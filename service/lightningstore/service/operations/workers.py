"""Workers: heartbeat, get, list."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.rules import lifecycle
from lightningstore.service.rules.checks import check_enum, check_metadata
from lightningstore.service.rules.errors import (
    AttemptNotFound,
    FieldInvalid,
    RolloutNotFound,
    WorkerNotFound,
)
from lightningstore.service.rules.filters import parse_order
from lightningstore.service.rules.ids import check_id, check_new_id
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.attempt_pb2 import STOP_REASON_UNKNOWN_ATTEMPT, AttemptRef, Stop
from lightningstore.v1.rollout_pb2 import FILTER_LOGIC_OR, FilterLogic
from lightningstore.v1.worker_pb2 import (
    GetWorkerRequest,
    GetWorkerResponse,
    HeartbeatRequest,
    HeartbeatResponse,
    ListWorkersRequest,
    ListWorkersResponse,
    Worker,
    WorkerStatus,
)

_FIELDS: dict[str, Callable[[Worker], Any]] = {
    "worker_id": lambda w: w.worker_id,
    "status": lambda w: w.status,
    "last_heartbeat_time": lambda w: nanoseconds(w.last_heartbeat_time),
    "last_dequeue_time": lambda w: nanoseconds(w.last_dequeue_time),
    "last_busy_time": lambda w: nanoseconds(w.last_busy_time),
    "last_idle_time": lambda w: nanoseconds(w.last_idle_time),
    "current_rollout_id": lambda w: w.current_rollout_id,
    "current_attempt_id": lambda w: w.current_attempt_id,
    "publish_number": lambda w: w.publish_number,
}

#: Workers that a list visits before other tasks may run: every process that ever asked for work may be one.
WORKERS_AT_ONCE = 1000


class _Order(NamedTuple):
    """An order of workers, and the place in it that a page begins after."""

    value: Callable[[Worker], Any]
    descending: bool
    after: tuple[Any, ...] | None

    def placed(self, worker: Worker) -> tuple[Any, str, Worker]:
        """Return a worker after its place."""
        return self.value(worker), worker.worker_id, worker

    def first(
        self, placed: list[tuple[Any, str, Worker]], count: int
    ) -> list[tuple[Any, str, Worker]]:
        """Return the first ones of the page."""
        after = self.after
        if after is not None:
            placed = [p for p in placed if (p[:2] < after if self.descending else p[:2] > after)]
        return sorted(placed, key=itemgetter(0, 1), reverse=self.descending)[:count]


class Workers:
    """The calls of worker.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def heartbeat(self, request: HeartbeatRequest) -> HeartbeatResponse:
        """Update a worker and its attempts, and return the attempts to stop."""
        self._engine.committer.admit(report=True)
        check_new_id("worker_id", request.worker_id)
        check_metadata("stats_json", request.stats_json, self._engine.limits.metadata_bytes)
        _check_number("publish_number", request.publish_number)
        self._engine.check_batch("attempts", len(request.attempts))
        for i, reference in enumerate(request.attempts):
            check_id(f"attempts[{i}].rollout_id", reference.rollout_id)
            if not reference.attempt_id:
                check_id(f"attempts[{i}].attempt_id", reference.attempt_id)
        failures, reply, turn = self._engine.committer.failures, HeartbeatResponse(), Turn()
        with self._live.state.held:
            # One damaged rollout must not end the attempts at the others.
            await self._engine.load_sound([ref.rollout_id for ref in request.attempts])
            self._engine.check_unbroken(failures)
            now = self._live.now()
            for reference in request.attempts:
                stop = self._beat(reference, now)
                if stop is not None:
                    reply.stops.append(stop)
                if turn.over():
                    self._engine.seal_changes()
                    await turn.next()
                    self._engine.check_unbroken(failures)
        reply.worker.CopyFrom(
            self._live.workforce.beat(
                request.worker_id, request.stats_json, request.publish_number, now
            )
        )
        await self._engine.commit()
        return reply

    def _beat(self, reference: AttemptRef, now: Any) -> Stop | None:
        try:
            attempt = self._live.loaded_attempt(reference.rollout_id, reference.attempt_id)
        except (RolloutNotFound, AttemptNotFound):
            return Stop(attempt=reference, reason=STOP_REASON_UNKNOWN_ATTEMPT)
        self._live.heard_from(attempt, now, by_span=False)
        reason = lifecycle.stop_reason(attempt.entry.rollout, attempt.record)
        if not reason:
            return None
        named = AttemptRef(rollout_id=reference.rollout_id, attempt_id=attempt.record.attempt_id)
        return Stop(attempt=named, reason=reason)  # type: ignore[arg-type]

    async def get_worker(self, request: GetWorkerRequest) -> GetWorkerResponse:
        """Return one worker."""
        check_id("worker_id", request.worker_id)
        record = self._live.workforce.find(request.worker_id)
        if record is None:
            raise WorkerNotFound(request.worker_id)
        reply = GetWorkerResponse(worker=record)
        await self._engine.barrier()
        return reply

    async def list_workers(self, request: ListWorkersRequest) -> ListWorkersResponse:
        """Return one page of the matching workers, all of which are in memory."""
        for i, status in enumerate(request.statuses):
            check_enum(f"statuses[{i}]", WorkerStatus, status)
        check_enum("filter_logic", FilterLogic, request.filter_logic, unspecified=True)
        _check_number("min_publish_number", request.min_publish_number)
        name, descending = parse_order(request.order_by, _FIELDS)
        digest = query_digest(request, "page_size", "page_token")
        size = self._engine.limits.page_length(request.page_size)
        after: tuple[Any, ...] | None = None
        if request.page_token:
            kind = type(_FIELDS[name or "worker_id"](Worker()))
            after = tuple(parse_page_token(request.page_token, digest, (kind, str)))
        ordered = _Order(_FIELDS[name or "worker_id"], descending, after)
        found = await self._first(_filter(request), ordered, size + 1)
        reply = ListWorkersResponse()
        room = self._engine.limits.answer_bytes
        for i, (_, _, worker) in enumerate(found):
            room -= worker.ByteSize()
            if len(reply.workers) == size or (reply.workers and room < 0):
                reply.next_page_token = page_token(digest, list(found[i - 1][:2]))
                break
            reply.workers.append(worker)
        await self._engine.barrier()
        return reply

    async def _first(
        self, matches: Callable[[Worker], bool], order: _Order, count: int
    ) -> list[tuple[Any, str, Worker]]:
        """Return the first matching workers of an order, each after its place in it."""
        turn, found = Turn(), list[tuple[Any, str, Worker]]()
        workers = list(self._live.workforce.workers.values())
        for start in range(0, len(workers), WORKERS_AT_ONCE):
            part = [state.record for state in workers[start : start + WORKERS_AT_ONCE]]
            found = order.first([*found, *map(order.placed, filter(matches, part))], count)
            if turn.over():
                await turn.next()
        return found


def _filter(request: ListWorkersRequest) -> Callable[[Worker], bool]:
    """Return whether a worker matches a request."""
    tests: list[Callable[[Worker], bool]] = []
    if request.statuses:
        statuses = frozenset(request.statuses)
        tests.append(lambda w: w.status in statuses)
    if request.worker_id_contains:
        tests.append(lambda w: request.worker_id_contains in w.worker_id)
    if request.min_publish_number:
        tests.append(lambda w: w.publish_number >= request.min_publish_number)
    combine = any if tests and request.filter_logic == FILTER_LOGIC_OR else all
    return lambda worker: combine(test(worker) for test in tests)


def _check_number(field: str, number: int) -> None:
    """Raise FieldInvalid for a negative publish number."""
    if number < 0:
        raise FieldInvalid(field, "must not be negative; publish numbers count from 1")
