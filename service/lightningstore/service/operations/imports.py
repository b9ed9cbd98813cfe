"""ImportRollouts: finished rollouts of another store, with their attempts and spans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.members import load_groups
from lightningstore.service.engine.state import AttemptState, Entry
from lightningstore.service.operations.ingest import SpanIngest
from lightningstore.service.operations.parts import Parsed, Part, Verdicts, compare_parts
from lightningstore.service.rules import lifecycle, rewards, spans
from lightningstore.service.rules.checks import (
    bounded_failure,
    check_config,
    check_enum,
    check_json,
    check_labels,
    check_metadata,
    check_queue,
)
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import (
    FieldInvalid,
    PayloadTooLarge,
    RolloutExists,
    SpanExists,
)
from lightningstore.service.rules.ids import check_label, check_new_id
from lightningstore.service.rules.statuses import FINISHED
from lightningstore.service.rules.times import NANOS, nanoseconds
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_FAILED, Attempt, AttemptStatus
from lightningstore.v1.import_pb2 import ImportRolloutsRequest, ImportRolloutsResponse
from lightningstore.v1.rollout_pb2 import Rollout, RolloutMode, RolloutStatus
from lightningstore.v1.span_pb2 import SpanBatch

#: The last nanosecond that fits 64 bits: in the year 2262.
_LAST_NS = (1 << 63) - 1


class Imports:
    """The call of import.proto."""

    def __init__(self, engine: Engine, ingest: SpanIngest) -> None:
        self._engine = engine
        self._live = engine.live
        self._ingest = ingest

    async def import_rollouts(
        self, requests: AsyncIterator[ImportRolloutsRequest]
    ) -> ImportRolloutsResponse:
        """Store the rollouts of a stream, message by message. The first error ends it."""
        reply = ImportRolloutsResponse()
        index, before = 0, ""
        failures = self._engine.committer.failures
        async for request in requests:
            field = f"messages[{index}]"
            rollout_id = request.rollout.rollout_id
            known = await self._import(field, request, reply)
            if rollout_id != before:
                reply.known_count += known
                reply.imported_count += not known
            index, before = index + 1, rollout_id
            del request  # parsed spans weigh more than their bytes: not while the next is awaited
            await self._engine.committer.room()
        await self._engine.barrier_since(failures)
        return reply

    async def _import(
        self, field: str, request: ImportRolloutsRequest, reply: ImportRolloutsResponse
    ) -> bool:
        """Store one message atomically; return whether the rollout was known."""
        self._check_rollout(f"{field}.rollout", request)
        self._check_attempts(field, request)
        self._engine.check_batch(f"{field}.batches", len(request.batches))
        span_ids = [
            self._check_spans(f"{field}.batches[{i}]", batch, request)
            for i, batch in enumerate(request.batches)
        ]
        parts: dict[str, list[Part]] = {}
        for batch, ids in zip(request.batches, span_ids, strict=True):
            parts.setdefault(batch.attempt_id, []).append(Parsed(batch, None, ids))
        entry, verdicts = await self._known(request, parts)
        known = entry is not None
        if entry is None:
            entry = self._add_finished(request)
        for attempt_id, own in parts.items():
            self._add_spans(entry.attempts[attempt_id], own, verdicts[attempt_id], reply)
        if self._engine.changes.size:
            self._engine.seal()
        return known

    async def _known(
        self, request: ImportRolloutsRequest, parts: dict[str, list[Part]]
    ) -> tuple[Entry | None, dict[str, Verdicts]]:
        """Return the rollout if it exists, and by attempt which of the spans are stored.

        Raises RolloutExists if its content differs, and GroupFull if it would be one member too many.
        """
        key: int | None = None
        verdicts: dict[str, Verdicts] = {attempt_id: {} for attempt_id in parts}
        while True:
            found = await self._engine.load_many([request.rollout.rollout_id], inputs=True)
            if self._engine.committer.failure is not None:
                raise self._engine.committer.failure
            if key is not None and (not found or found[0].key != key):
                # It was removed since, with the spans that these were compared with.
                verdicts = {attempt_id: {} for attempt_id in parts}
            if not found:
                if not self._live.groups.knows(request.rollout.group_id):
                    await load_groups(self._engine, [request.rollout.group_id])
                    continue
                self._live.groups.check_room({request.rollout.group_id: 1})
                for attempt_id, own in parts.items():
                    compare_parts(set(), own, verdicts[attempt_id])
                return None, verdicts
            key = found[0].key
            if not _same_content(request, found[0]):
                raise RolloutExists(request.rollout.rollout_id)
            awaited = False
            for attempt_id, own in parts.items():
                attempt = found[0].attempts[attempt_id]
                if attempt.span_ids is None:
                    await self._ingest.load_span_ids(attempt)
                    awaited = True
                elif await self._ingest.compare(attempt, own, verdicts[attempt_id]):
                    awaited = True
            if not awaited:
                return found[0], verdicts

    def _add_finished(self, request: ImportRolloutsRequest) -> Entry:
        """Store a new rollout with its attempts. It finishes now and gets the next number."""
        record = evolve(
            request.rollout,
            input_json=None,
            latest_attempt=None,
            completion_number=None,
            payloads_omitted=None,
        )
        record.config.max_attempts = record.config.max_attempts or 1
        entry = Entry(0, record, request.rollout.input_json)
        for given in request.attempts:
            self._live.state.counters.attempt_key += 1
            copy = evolve(given, span_count=None, **rewards.imported(given))
            attempt = AttemptState(entry, self._live.state.counters.attempt_key, copy)
            attempt.span_ids = set()
            attempt.heard_at = self._engine.clock.monotonic()
            entry.attempts[given.attempt_id] = entry.latest = attempt
            self._live.state.count_attempt(0, given.status)
        self._live.add_rollout(entry, queued=False)
        self._live.finish(entry)
        for attempt in entry.attempts.values():
            self._live.save_attempt(attempt)
        self._live.state.touch(entry)
        return entry

    def _add_spans(
        self,
        attempt: AttemptState,
        parts: list[Part],
        verdicts: Verdicts,
        reply: ImportRolloutsResponse,
    ) -> None:
        """Store the new spans of an attempt, and count all of them."""
        fresh, conflicts, example, reward = self._ingest.append_new(attempt, parts, verdicts)
        if fresh:
            count = attempt.record.span_count + fresh
            record = evolve(attempt.record, span_count=count)
            if reward is not None:
                rewards.add_from_span(record, reward)
            self._live.put_attempt(attempt, record, self._live.now())
        if conflicts:
            self._ingest.note_refused(conflicts, SpanExists(example, conflicts))
        total = sum([len(part.span_ids) for part in parts])
        reply.accepted_span_count += fresh
        reply.duplicate_span_count += total - fresh - conflicts
        reply.conflict_span_count += conflicts

    # Checks

    def _check_rollout(self, field: str, request: ImportRolloutsRequest) -> None:
        record = request.rollout
        check_new_id(f"{field}.rollout_id", record.rollout_id)
        if not record.input_json:
            raise FieldInvalid(f"{field}.input_json", "required: a JSON value, null for none")
        size = len(record.input_json)
        if size > self._engine.limits.input_bytes:
            raise PayloadTooLarge(f"{field}.input_json", size, self._engine.limits.input_bytes)
        check_json(f"{field}.input_json", record.input_json)
        check_metadata(
            f"{field}.metadata_json", record.metadata_json, self._engine.limits.metadata_bytes
        )
        check_enum(f"{field}.mode", RolloutMode, record.mode, unspecified=True)
        for name in ("group_id", "resources_id"):
            check_label(f"{field}.{name}", getattr(record, name))
        check_queue(f"{field}.queue", record.queue)
        check_labels(f"{field}.labels", record.labels)
        check_enum(f"{field}.status", RolloutStatus, record.status)
        if record.status not in FINISHED:
            wanted = ", ".join(RolloutStatus.Name(status) for status in FINISHED)
            name = RolloutStatus.Name(record.status)
            raise FieldInvalid(
                f"{field}.status", f"{name} is not a final status; must be one of {wanted}"
            )
        check_config(f"{field}.config", record.config)
        _check_times(field, record, "start_time", "end_time")
        if record.end_publish_number < 0:
            raise FieldInvalid(f"{field}.end_publish_number", "must not be negative")
        self._check_counts(field, request)

    @staticmethod
    def _check_counts(field: str, request: ImportRolloutsRequest) -> None:
        """Raise FieldInvalid if the rollout disagrees with its attempts."""
        record = request.rollout
        if record.attempt_count != len(request.attempts):
            problem = (
                f"{record.attempt_count}, must be {len(request.attempts)}, the number of attempts"
            )
            raise FieldInvalid(f"{field}.attempt_count", problem)
        latest = request.attempts[-1].attempt_id if request.attempts else ""
        if record.latest_attempt_id != latest:
            problem = f"{record.latest_attempt_id!r}, must be that of the last attempt, {latest!r}"
            raise FieldInvalid(f"{field}.latest_attempt_id", problem)

    def _check_attempts(self, field: str, request: ImportRolloutsRequest) -> None:
        self._engine.check_batch(f"{field}.attempts", len(request.attempts))
        seen: set[str] = set()
        for i, attempt in enumerate(request.attempts):
            place = f"{field}.attempts[{i}]"
            _check_attempt(place, attempt, request.rollout.rollout_id, i + 1)
            check_metadata(
                f"{place}.metadata_json", attempt.metadata_json, self._engine.limits.metadata_bytes
            )
            if attempt.HasField("failure"):
                attempt.failure.CopyFrom(bounded_failure(attempt.failure))
            if attempt.attempt_id in seen:
                problem = f"{attempt.attempt_id!r} is a duplicate"
                raise FieldInvalid(f"{field}.attempts[{i}].attempt_id", problem)
            seen.add(attempt.attempt_id)

    def _check_spans(
        self, field: str, batch: SpanBatch, request: ImportRolloutsRequest
    ) -> list[bytes]:
        """Return the span ids of a batch."""
        _check_owner(field, batch, request.rollout.rollout_id)
        if batch.attempt_id not in {attempt.attempt_id for attempt in request.attempts}:
            problem = f"{batch.attempt_id!r} must be one of the attempts"
            raise FieldInvalid(f"{field}.attempt_id", problem)
        return spans.check_batch(batch, batch.ByteSize(), self._engine.limits.span_bytes, field)


def _check_attempt(field: str, record: Attempt, rollout_id: str, number: int) -> None:
    _check_owner(field, record, rollout_id)
    check_new_id(f"{field}.attempt_id", record.attempt_id)
    if record.sequence_number != number:
        raise FieldInvalid(
            f"{field}.sequence_number", f"{record.sequence_number}, must be {number}"
        )
    check_enum(f"{field}.status", AttemptStatus, record.status)
    if record.HasField("failure") and record.status != ATTEMPT_STATUS_FAILED:
        raise FieldInvalid(f"{field}.failure", "is allowed only with status ATTEMPT_STATUS_FAILED")
    rewards.check(field, record)
    check_new_id(f"{field}.worker_id", record.worker_id, required=False)
    check_label(f"{field}.resources_id", record.resources_id)
    for name in ("resources_version", "publish_number"):
        if getattr(record, name) < 0:
            raise FieldInvalid(f"{field}.{name}", "must not be negative")
    if lifecycle.is_live(record):
        if record.HasField("end_time"):
            name = AttemptStatus.Name(record.status)
            raise FieldInvalid(f"{field}.end_time", f"an attempt that is {name} has not ended")
        _check_times(field, record, "start_time")
    else:
        _check_times(field, record, "start_time", "end_time")
    if record.HasField("last_heartbeat_time"):
        _check_times(field, record, "last_heartbeat_time")


def _check_owner(field: str, record: Any, rollout_id: str) -> None:
    if record.rollout_id != rollout_id:
        problem = f"{record.rollout_id!r}, must be that of the rollout, {rollout_id!r}"
        raise FieldInvalid(f"{field}.rollout_id", problem)


def _check_times(field: str, record: Message, *names: str) -> None:
    """Raise FieldInvalid for times that are missing or exceed 64 bits of nanoseconds."""
    for name in names:
        if not record.HasField(name):
            raise FieldInvalid(f"{field}.{name}", "required")
        time: Timestamp = getattr(record, name)
        if not (0 <= time.nanos < NANOS and 0 <= nanoseconds(time) <= _LAST_NS):
            raise FieldInvalid(
                f"{field}.{name}", "must be a time from 1970 to 2262, with nanos below 1e9"
            )


def _same_content(request: ImportRolloutsRequest, entry: Entry) -> bool:
    """Return whether an imported rollout equals the stored one, except for what may still change."""
    given, stored = request.rollout, entry.rollout
    if not lifecycle.is_finished(stored) or _text(given.input_json) != _text(entry.input_json):
        return False
    if _comparable(given) != _comparable(stored) or len(request.attempts) != len(entry.attempts):
        return False
    for attempt, known in zip(request.attempts, entry.attempts.values(), strict=True):
        ignored = ["last_heartbeat_time", "span_count"]
        if lifecycle.is_live(attempt):
            ignored += ["status", "end_time"]
        given_attempt = evolve(attempt, **rewards.imported(attempt))
        one, other = _without(given_attempt, *ignored), _without(known.record, *ignored)
        if rewards.without_span_rewards(one) != rewards.without_span_rewards(other):
            return False
    return True


def _comparable(record: Rollout) -> Rollout:
    copy: Rollout = _without(
        record,
        *("input_json", "latest_attempt", "completion_number", "end_publish_number"),
        "payloads_omitted",
    )
    copy.config.max_attempts = copy.config.max_attempts or 1
    return copy


def _without(record: Any, *names: str) -> Any:
    """Return a copy without some fields, and with its metadata normalised for comparison."""
    metadata = _text(record.metadata_json)
    copy = evolve(
        record, metadata_json=b"" if metadata == b"{}" else metadata, **dict.fromkeys(names)
    )
    if isinstance(copy, Attempt) and copy.HasField("failure"):
        copy.failure.CopyFrom(bounded_failure(copy.failure))  # older servers cut no texts
    return copy


def _text(json: bytes) -> bytes:
    """Return JSON without surrounding blanks and line breaks, which line-based files do not keep."""
    return json.translate(None, b"\r\n").strip(b" \t")
