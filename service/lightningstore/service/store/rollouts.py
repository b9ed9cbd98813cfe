"""Rollouts: enqueue, get, list, update, cancel."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service import filters, lifecycle
from lightningstore.service.errors import (
    FieldInvalid,
    PayloadTooLarge,
    QueueFull,
    ResourcesNotFound,
    RolloutExists,
    RolloutNotFound,
)
from lightningstore.service.lifecycle import Queue, Transition
from lightningstore.service.records import (
    MAX_ID_LENGTH,
    check_config,
    check_enum,
    check_id,
    check_json,
    check_json_object,
    evolve,
    mask_paths,
    new_id,
    page_token,
    parse_page_token,
    query_digest,
)
from lightningstore.service.state import Entry
from lightningstore.service.storage.base import RolloutQuery
from lightningstore.service.store.core import ROW_BYTES, Core
from lightningstore.v1.rollout_pb2 import (
    FILTER_LOGIC_OR,
    ROLLOUT_STATUS_CANCELLED,
    ROLLOUT_STATUS_QUEUING,
    CancelRolloutsRequest,
    CancelRolloutsResponse,
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    FilterLogic,
    GetRolloutRequest,
    GetRolloutResponse,
    ListRolloutsRequest,
    ListRolloutsResponse,
    Rollout,
    RolloutMode,
    RolloutSpec,
    RolloutStatus,
    UpdateRolloutRequest,
    UpdateRolloutResponse,
)

R = TypeVar("R", bound=Message)

DEFAULT_PAGE_SIZE = 100
UPDATABLE = (
    "status",
    "input_json",
    "mode",
    "priority",
    "group_id",
    "resources_id",
    "config",
    "metadata_json",
)


class RolloutOperations(Core):
    """The calls of rollout.proto."""

    async def enqueue_rollouts(self, request: EnqueueRolloutsRequest) -> EnqueueRolloutsResponse:
        """Put rollouts at the tail of the queue, all or none."""
        self.committer.admit()
        specs = request.rollouts
        self.check_batch("rollouts", len(specs))
        self._check_inputs(specs)
        named = [spec.rollout_id for spec in specs if spec.rollout_id]
        if named:
            await self.load_many(named)
        if (answer := self.requests.find("EnqueueRollouts", request)) is not None:
            return await self.replay(EnqueueRolloutsResponse.FromString(answer))
        reply = EnqueueRolloutsResponse()
        entries = self._new_entries(request)
        if self.limits.queue_length:
            added = sum(entry.rollout.rollout_id not in self.state.entries for entry in entries)
            if added and self.queue_depth + added > self.limits.queue_length:
                raise QueueFull(self.limits.queue_length)
        for entry in entries:
            if entry.rollout.rollout_id not in self.state.entries:
                self.add_rollout(entry, queued=True)
            entry.compose(reply.rollouts.add())
        if request.request_id:
            self.remember("EnqueueRollouts", request, references(reply))
        self.serve_polls()
        await self.commit()
        return reply

    def _check_inputs(self, specs: Any) -> None:
        total = 0
        for i, spec in enumerate(specs):
            size = len(spec.input_json)
            if size > self.limits.input_bytes:
                raise PayloadTooLarge(f"rollouts[{i}].input_json", size, self.limits.input_bytes)
            total += size
        if total > self.limits.inputs_bytes:
            raise PayloadTooLarge("rollouts[].input_json", total, self.limits.inputs_bytes)

    def _new_entries(self, request: EnqueueRolloutsRequest) -> list[Entry]:
        """Check all items and return the entries to answer with, new or known; changes nothing."""
        now = self.now()
        entries: list[Entry] = []
        made: dict[str, Entry] = {}
        for i, spec in enumerate(request.rollouts):
            field = f"rollouts[{i}]"
            known = None
            if spec.rollout_id:
                known = self.state.entries.get(spec.rollout_id) or made.get(spec.rollout_id)
            entry = known or self.new_entry(field, spec, now)
            if known is not None and not _same_content(spec, known):
                raise RolloutExists(spec.rollout_id)
            made[entry.rollout.rollout_id] = entry
            entries.append(entry)
        return entries

    def new_entry(self, field: str, spec: RolloutSpec, now: Timestamp) -> Entry:
        """Check a specification and make its rollout, which is not in the store yet."""
        if not spec.input_json:
            raise FieldInvalid(f"{field}.input_json", "required: a JSON value, null for none")
        check_json(f"{field}.input_json", spec.input_json)
        if spec.metadata_json:
            check_json_object(f"{field}.metadata_json", spec.metadata_json)
        check_id(f"{field}.rollout_id", spec.rollout_id, required=False)
        _check_group(f"{field}.group_id", spec.group_id)
        check_enum(f"{field}.mode", RolloutMode, spec.mode, unspecified=True)
        config = spec.config if spec.HasField("config") else None
        if config is not None:
            check_config(f"{field}.config", config)
        resources_id = spec.resources_id or self.state.latest_resources_id
        if resources_id and resources_id not in self.state.resources:
            raise ResourcesNotFound(resources_id)
        record = Rollout()  # keywords cost three times as much as assignments
        record.rollout_id = spec.rollout_id or new_id("ro-", 12)
        record.status = ROLLOUT_STATUS_QUEUING
        record.start_time.CopyFrom(now)
        for name in ("mode", "priority", "group_id", "metadata_json"):
            if value := getattr(spec, name):
                setattr(record, name, value)
        if resources_id:
            record.resources_id = resources_id
        stored = record.config
        if config is not None:
            stored.CopyFrom(config)
        if not stored.max_attempts:
            stored.max_attempts = 1
        return Entry(0, record, spec.input_json)

    def add_rollout(self, entry: Entry, *, queued: bool) -> None:
        """Put a new rollout into the store, and into the queue if `queued`."""
        counters = self.state.counters
        counters.rollout_key += 1
        entry.key = counters.rollout_key
        self.state.entries[entry.rollout.rollout_id] = entry
        self.state.count_rollout(0, entry.rollout.status)
        changes = self.committer.changes
        changes.inputs.append((entry.key, entry.input_json))
        changes.size += len(entry.input_json) + ROW_BYTES
        self.put_rollout(entry, entry.rollout, Queue.TAIL if queued else Queue.KEEP)

    async def get_rollout(self, request: GetRolloutRequest) -> GetRolloutResponse:
        """Return one rollout with its latest attempt."""
        entry = await self.load(request.rollout_id)
        reply = GetRolloutResponse()
        entry.compose(reply.rollout)
        await self.barrier()
        return reply

    async def list_rollouts(self, request: ListRolloutsRequest) -> ListRolloutsResponse:
        """Return one page of the rollouts that match."""
        query, digest = self._rollout_query(request)
        await self.barrier()
        reply = ListRolloutsResponse()
        size, last, more = 0, None, False
        async for loaded in self.storage.scan_rollouts(query):
            if len(reply.rollouts) == query.limit - 1 or size > self.limits.answer_bytes:
                more = True
                break
            loaded.compose(reply.rollouts.add())
            size += len(loaded.input_json) + ROW_BYTES
            last = loaded.row
        if more and last is not None:
            values = [last.key]
            if query.order_by != "key":
                values.insert(0, filters.sort_value(query, last))
            reply.next_page_token = page_token(digest, values)
        if request.include_total_size:
            reply.total_size = await self._total_size(query)
        return reply

    def _rollout_query(self, request: ListRolloutsRequest) -> tuple[RolloutQuery, int]:
        """Check a list request; the query asks for one row more than the page holds."""
        for i, status in enumerate(request.statuses):
            check_enum(f"statuses[{i}]", RolloutStatus, status)
        for i, mode in enumerate(request.modes):
            check_enum(f"modes[{i}]", RolloutMode, mode, unspecified=True)
        check_enum("filter_logic", FilterLogic, request.filter_logic, unspecified=True)
        self.check_batch("rollout_ids", len(request.rollout_ids))
        self.check_batch("group_ids", len(request.group_ids))
        if request.skip < 0:
            raise FieldInvalid("skip", "must not be negative")
        column, descending = filters.parse_order(request.order_by, filters.COLUMNS)
        digest = query_digest(request, "page_size", "page_token", "skip", "include_total_size")
        after: tuple[Any, int] | None = None
        if request.page_token:
            kind = type(filters.COLUMNS[column](Rollout())) if column else int
            types = (kind, int) if column else (int,)
            values = parse_page_token(request.page_token, digest, types)
            after = (values[0], values[-1])
        query = RolloutQuery(
            statuses=frozenset(request.statuses),
            rollout_ids=frozenset(request.rollout_ids),
            rollout_id_contains=request.rollout_id_contains,
            modes=frozenset(request.modes),
            group_ids=frozenset(request.group_ids),
            any_of=request.filter_logic == FILTER_LOGIC_OR,
            order_by=column or "key",
            descending=descending,
            after=after,
            skip=request.skip,
            limit=self.page_size(request.page_size) + 1,
        )
        return query, digest

    def page_size(self, asked: int) -> int:
        """Return how many items a page may hold."""
        if asked < 0:
            raise FieldInvalid("page_size", "must not be negative; 0 means 100")
        return min(asked or DEFAULT_PAGE_SIZE, self.limits.page_size)

    async def _total_size(self, query: RolloutQuery) -> int:
        counts = self.state.counters.rollouts
        if not (query.rollout_ids or query.rollout_id_contains or query.modes or query.group_ids):
            chosen = query.statuses or counts
            return sum(counts.get(status, 0) for status in chosen)
        return await self.storage.count_rollouts(query)

    async def update_rollout(self, request: UpdateRolloutRequest) -> UpdateRolloutResponse:
        """Change fields of a rollout."""
        self.committer.admit()
        given = request.rollout
        entry = await self.load(given.rollout_id, "rollout.rollout_id")
        if (answer := self.requests.find("UpdateRollout", request)) is not None:
            return await self.replay(UpdateRolloutResponse.FromString(answer))
        mask = request.update_mask if request.HasField("update_mask") else None
        paths = mask_paths(mask, given, UPDATABLE)
        self._check_rollout_update(given, paths)
        now = self.now()
        transition = Transition()
        if "status" in paths:
            transition = lifecycle.set_status(entry.rollout, given.status, now)
        record = self._updated(transition.rollout or entry.rollout, given, paths)
        self.apply(entry, None, transition._replace(rollout=record), now)
        if "input_json" in paths:
            entry.input_json = given.input_json
            self.changes.inputs.append((entry.key, entry.input_json))
            self.changes.size += len(entry.input_json)
        if entry.position and {"priority", "mode"} & set(paths) and entry not in self.delays:
            self.queue_due(entry)  # to another lane, in the place that it has
        if "config" in paths:
            for attempt in entry.attempts.values():
                if lifecycle.is_live(attempt.record):
                    self.arm(attempt)
        reply = UpdateRolloutResponse()
        entry.compose(reply.rollout)
        if request.request_id:
            self.remember("UpdateRollout", request, references(reply))
        self.serve_polls()
        await self.commit()
        return reply

    def _check_rollout_update(self, given: Rollout, paths: list[str]) -> None:
        if "status" in paths:
            check_enum("rollout.status", RolloutStatus, given.status)
        if "input_json" in paths:
            if not given.input_json:
                raise FieldInvalid("rollout.input_json", "cannot be cleared; null is a JSON value")
            if len(given.input_json) > self.limits.input_bytes:
                raise PayloadTooLarge(
                    "rollout.input_json", len(given.input_json), self.limits.input_bytes
                )
            check_json("rollout.input_json", given.input_json)
        if "mode" in paths:
            check_enum("rollout.mode", RolloutMode, given.mode, unspecified=True)
        if "group_id" in paths:
            _check_group("rollout.group_id", given.group_id)
        if "config" in paths:
            check_config("rollout.config", given.config)
        if "metadata_json" in paths:
            check_json_object("rollout.metadata_json", given.metadata_json)
        resources_id = given.resources_id if "resources_id" in paths else ""
        if resources_id and resources_id not in self.state.resources:
            raise ResourcesNotFound(resources_id)

    @staticmethod
    def _updated(record: Rollout, given: Rollout, paths: list[str]) -> Rollout:
        changes: dict[str, Any] = {
            path: getattr(given, path) for path in paths if path not in ("status", "input_json")
        }
        changed = evolve(record, **changes)
        if not changed.config.max_attempts:
            changed.config.max_attempts = 1
        return changed

    async def cancel_rollouts(self, request: CancelRolloutsRequest) -> CancelRolloutsResponse:
        """Cancel those that have not finished."""
        self.committer.admit(report=True)
        ids = request.rollout_ids
        self.check_batch("rollout_ids", len(ids))
        for i, rollout_id in enumerate(ids):
            check_id(f"rollout_ids[{i}]", rollout_id)
        entries = {e.rollout.rollout_id: e for e in await self.load_many(ids)}
        for rollout_id in ids:
            if rollout_id not in entries:
                raise RolloutNotFound(rollout_id)
        if (answer := self.requests.find("CancelRollouts", request)) is not None:
            return await self.replay(CancelRolloutsResponse.FromString(answer))
        now = self.now()
        reply = CancelRolloutsResponse()
        for entry in entries.values():
            if not lifecycle.is_finished(entry.rollout):
                transition = lifecycle.set_status(entry.rollout, ROLLOUT_STATUS_CANCELLED, now)
                self.apply(entry, None, transition, now)
        for rollout_id in ids:
            entries[rollout_id].compose(reply.rollouts.add())
        if request.request_id:
            self.remember("CancelRollouts", request, references(reply))
        await self.commit()
        return reply

    def serve_polls(self) -> None:
        """Hand rollouts that can be claimed to those who wait for them. See claims.py."""
        raise NotImplementedError

    async def replay(self, answer: R) -> R:
        """Return the answer to a request id that was answered before: its rollouts as they are now.

        A claim keeps the attempt that it made, also where a newer one has taken over.
        """
        references = rollouts_of(answer)
        entries = {
            e.rollout.rollout_id: e for e in await self.load_many(r.rollout_id for r in references)
        }
        for rollout in references:
            entry = entries.get(rollout.rollout_id)
            if entry is not None:  # else it was removed since: its ids are what is left of it
                attempt = entry.attempts.get(rollout.latest_attempt.attempt_id)
                entry.compose(rollout, attempt)
        await self.barrier()
        return answer


def _check_group(field: str, value: str) -> None:
    if len(value) > MAX_ID_LENGTH:
        raise FieldInvalid(field, f"{len(value)} characters, at most {MAX_ID_LENGTH} are allowed")


def _same_content(spec: RolloutSpec, entry: Entry) -> bool:
    """Tell whether a specification is the one that the rollout was made of."""
    record = entry.rollout
    config = evolve(spec.config, max_attempts=spec.config.max_attempts or 1)
    return (
        spec.input_json == entry.input_json
        and spec.mode == record.mode
        and spec.priority == record.priority
        and spec.group_id == record.group_id
        and (not spec.resources_id or spec.resources_id == record.resources_id)
        and spec.metadata_json == record.metadata_json
        and config == record.config
    )


def rollouts_of(answer: Message) -> list[Rollout]:
    """Return the rollouts of an answer that holds one or many."""
    named: Any = answer
    return list(named.rollouts) if hasattr(named, "rollouts") else [named.rollout]


def references(reply: R) -> R:
    """Return the answer with its rollouts reduced to the ids of rollout and attempt."""
    kept: Any = type(reply)()
    for rollout in rollouts_of(reply):
        reference = kept.rollouts.add() if hasattr(kept, "rollouts") else kept.rollout
        reference.rollout_id = rollout.rollout_id
        if rollout.latest_attempt_id:
            reference.latest_attempt.attempt_id = rollout.latest_attempt_id
    return cast("R", kept)
