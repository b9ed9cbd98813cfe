"""Attempts: get, list, update, expire."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.state import AttemptState
from lightningstore.service.rules import lifecycle, rewards
from lightningstore.service.rules.checks import (
    bounded_failure,
    check_enum,
    check_metadata,
    mask_paths,
)
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import FieldInvalid
from lightningstore.service.rules.ids import check_new_id
from lightningstore.service.rules.lifecycle import Transition
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.times import NANOS, nanoseconds
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_FAILED,
    Attempt,
    AttemptStatus,
    GetAttemptRequest,
    GetAttemptResponse,
    ListAttemptsRequest,
    ListAttemptsResponse,
    UpdateAttemptRequest,
    UpdateAttemptResponse,
)

UPDATABLE = (
    *("status", "failure", "worker_id", "last_heartbeat_time", "metadata_json"),
    *rewards.PATHS,
)


class Attempts:
    """The calls of attempt.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def get_attempt(self, request: GetAttemptRequest) -> GetAttemptResponse:
        """Return one attempt."""
        entry = await self._engine.load(request.rollout_id)
        reply = GetAttemptResponse(attempt=self._live.attempt_of(entry, request.attempt_id).record)
        await self._engine.barrier()
        return reply

    async def list_attempts(self, request: ListAttemptsRequest) -> ListAttemptsResponse:
        """Return one page of a rollout's attempts."""
        digest = query_digest(request, "page_size", "page_token")
        size = self._engine.limits.page_length(request.page_size)
        after = 0
        if request.page_token:
            after = parse_page_token(request.page_token, digest, (int,))[0]
        entry = await self._engine.load(request.rollout_id)
        records = [a.record for a in entry.attempts.values() if a.record.sequence_number > after]
        reply = ListAttemptsResponse()
        room = self._engine.limits.answer_bytes
        for record in records:
            room -= record.ByteSize()
            if len(reply.attempts) == size or (reply.attempts and room < 0):
                last = reply.attempts[-1].sequence_number
                reply.next_page_token = page_token(digest, [last])
                break
            reply.attempts.append(record)
        await self._engine.barrier()
        return reply

    async def update_attempt(self, request: UpdateAttemptRequest) -> UpdateAttemptResponse:
        """Report an outcome, or change the record of an attempt."""
        self._engine.committer.admit(report=True)
        given = request.attempt
        entry = await self._engine.load(given.rollout_id, "attempt.rollout_id")
        attempt = self._live.attempt_of(entry, given.attempt_id, "attempt.attempt_id")
        if (answer := self._engine.requests.find("UpdateAttempt", request)) is not None:
            return await self._replay_update(UpdateAttemptResponse.FromString(answer), attempt)
        mask = request.update_mask if request.HasField("update_mask") else None
        paths = mask_paths(mask, given, UPDATABLE, rewards.score_of)
        self._check_attempt_update(request, attempt.record, paths)
        reply = UpdateAttemptResponse()
        # Evaluated before the report: an attempt whose outcome decides its rollout need not be
        # asked to stop, nor one that repeats its outcome.
        if "status" not in paths or not lifecycle.decided(
            entry.rollout, attempt.record, given.status
        ):
            reason = lifecycle.stop_reason(entry.rollout, attempt.record)
            reply.stop_reason = reason  # type: ignore[assignment]
        self._update(attempt, given, paths)
        reply.attempt.CopyFrom(attempt.record)
        if request.HasField("sent_span_count"):
            reply.missing_span_count = max(0, request.sent_span_count - attempt.record.span_count)
        if request.request_id:
            kept = UpdateAttemptResponse()
            kept.CopyFrom(reply)
            kept.attempt.ClearField("metadata_json")
            kept.attempt.ClearField("failure")
            self._engine.remember("UpdateAttempt", request, kept)
        self._engine.polls.serve()
        await self._engine.commit()
        return reply

    async def _replay_update(
        self, answer: UpdateAttemptResponse, attempt: AttemptState
    ) -> UpdateAttemptResponse:
        """Return the answer to a repeated report, with its long fields from the current record."""
        answer.attempt.metadata_json = attempt.record.metadata_json
        if attempt.record.HasField("failure") and answer.attempt.status == ATTEMPT_STATUS_FAILED:
            answer.attempt.failure.CopyFrom(attempt.record.failure)
        await self._engine.barrier()
        return answer

    def _check_attempt_update(
        self, request: UpdateAttemptRequest, record: Attempt, paths: list[str]
    ) -> None:
        given = request.attempt
        if "status" in paths:
            check_enum("attempt.status", AttemptStatus, given.status)
        if "failure" in paths and given.HasField("failure"):
            status = given.status if "status" in paths else record.status
            if status != ATTEMPT_STATUS_FAILED:
                raise FieldInvalid(
                    "attempt.failure", "is allowed only with status ATTEMPT_STATUS_FAILED"
                )
        if "worker_id" in paths:
            check_new_id("attempt.worker_id", given.worker_id, required=False)
        if "metadata_json" in paths:
            check_metadata(
                "attempt.metadata_json", given.metadata_json, self._engine.limits.metadata_bytes
            )
        if "last_heartbeat_time" in paths and not 0 <= given.last_heartbeat_time.nanos < NANOS:
            raise FieldInvalid("attempt.last_heartbeat_time.nanos", "must be from 0 to 999999999")
        rewards.check("attempt", given, paths)
        if request.HasField("sent_span_count") and request.sent_span_count < 0:
            raise FieldInvalid("sent_span_count", "must not be negative")

    def _update(self, attempt: AttemptState, given: Attempt, paths: list[str]) -> None:
        now, entry = self._live.now(), attempt.entry
        failure = None
        if "failure" in paths and given.HasField("failure"):
            failure = bounded_failure(given.failure)
        transition = Transition()
        if "status" in paths:
            transition = lifecycle.report(
                entry.rollout,
                attempt.record,
                given.status,
                failure,
                now,
                self._engine.dice(),
            )
        changes = {
            path: getattr(given, path) for path in paths if path in ("worker_id", "metadata_json")
        }
        if "failure" in paths and "status" not in paths:
            changes["failure"] = failure
        if "last_heartbeat_time" in paths:
            changes["last_heartbeat_time"] = self._note_heartbeat(attempt, given, now)
        own = sum(map(rewards.is_own, paths))
        if changes or own:
            record = evolve(transition.attempt or attempt.record, **changes)
            rewards.report(record, given, paths)
            transition = transition._replace(attempt=record)
        self._live.apply(entry, attempt, transition, now)
        if not paths or own < len(paths):
            self._live.workforce.heard_from(attempt.record.worker_id, now)

    def _note_heartbeat(
        self, attempt: AttemptState, given: Attempt, now: Timestamp
    ) -> Timestamp | None:
        """Return the heartbeat time to record, None to clear it. A later one extends the deadline."""
        if not given.HasField("last_heartbeat_time"):
            return None
        ago = max(0, nanoseconds(now) - nanoseconds(given.last_heartbeat_time)) / NANOS
        attempt.heard_at = max(attempt.heard_at, self._engine.clock.monotonic() - ago)
        return given.last_heartbeat_time if ago else now
