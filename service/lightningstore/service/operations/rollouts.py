"""Rollouts: get, list, update, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.service.engine.answers import compose_all
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.members import load_member
from lightningstore.service.engine.requests import references
from lightningstore.service.engine.state import Entry
from lightningstore.service.operations.bulk import Bulk
from lightningstore.service.operations.enqueue import Enqueue
from lightningstore.service.operations.selections import check_filters, filters_of
from lightningstore.service.rules import filters, lifecycle
from lightningstore.service.rules.checks import (
    check_config,
    check_enum,
    check_json,
    check_labels,
    check_metadata,
    check_queue,
    mask_paths,
)
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import (
    FieldInvalid,
    PayloadTooLarge,
    ResourcesNotFound,
    RolloutNotFound,
)
from lightningstore.service.rules.ids import LATEST, check_id, check_label
from lightningstore.service.rules.lifecycle import Transition
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.rows import LoadedRollout, RolloutQuery, RolloutRow
from lightningstore.v1.rollout_pb2 import (
    CancelRolloutsRequest,
    CancelRolloutsResponse,
    GetRolloutRequest,
    GetRolloutResponse,
    ListRolloutsRequest,
    ListRolloutsResponse,
    Rollout,
    RolloutMode,
    RolloutStatus,
    UpdateRolloutRequest,
    UpdateRolloutResponse,
)

R = TypeVar("R", bound=Message)

#: Rollouts that are read at a time to count those with a text in their failure.
COUNTED_AT_ONCE = 1000
#: Fields of ListRollouts that may change from page to page.
NOT_OF_A_QUERY = ("page_size", "page_token", "skip", "include_total_size", "omit_payloads")

UPDATABLE = (
    "status",
    "input_json",
    "mode",
    "priority",
    "group_id",
    "resources_id",
    "config",
    "metadata_json",
    "queue",
    "labels",
)


class Rollouts:
    """The calls of rollout.proto."""

    def __init__(self, engine: Engine, bulk: Bulk, enqueue: Enqueue) -> None:
        self._engine = engine
        self._live = engine.live
        self._bulk = bulk
        self._enqueue = enqueue

    async def get_rollout(self, request: GetRolloutRequest) -> GetRolloutResponse:
        """Return one rollout with its latest attempt."""
        entry = await self._engine.load(request.rollout_id, inputs=True)
        reply = GetRolloutResponse()
        entry.shown().compose_within(reply.rollout, self._engine.limits.message_bytes)
        await self._engine.barrier()
        return reply

    async def list_rollouts(self, request: ListRolloutsRequest) -> ListRolloutsResponse:
        """Return one page of the matching rollouts."""
        query, digest = self._rollout_query(request)
        await self._engine.barrier()
        reply = ListRolloutsResponse()
        last: LoadedRollout | None = None
        size, more = 0, False
        async for loaded in self._scan(query):
            shown = loaded.shown()
            size += shown.listed_size() if request.omit_payloads else shown.size()
            full = reply.rollouts and size > self._engine.limits.answer_bytes
            if len(reply.rollouts) == query.limit - 1 or full:
                more = True
                break
            target = reply.rollouts.add()
            if request.omit_payloads:
                shown.compose_listed(target)
            else:
                shown.compose_within(target, self._engine.limits.message_bytes)
            last = loaded
        if more and last is not None:
            value, key = _place(query, last)
            values = [key] if query.order_by == "key" else [value, key]
            reply.next_page_token = page_token(digest, values)
        if request.include_total_size:
            reply.total_size = await self._total_size(query)
        return reply

    def _rollout_query(self, request: ListRolloutsRequest) -> tuple[RolloutQuery, int]:
        """Check a list request. The query requests one row more than the page holds."""
        check_filters(self._engine, request)
        if request.skip < 0:
            raise FieldInvalid("skip", "must not be negative")
        column, descending = filters.parse_order(request.order_by, filters.COLUMNS)
        digest = query_digest(request, *NOT_OF_A_QUERY)
        after: tuple[Any, int] | None = None
        if request.page_token:
            kind = type(filters.COLUMNS[column](RolloutRow(0, Rollout(), 0, 0))) if column else int
            types = (kind, int) if column else (int,)
            values = parse_page_token(request.page_token, digest, types)
            after = (values[0], values[-1])
        query = replace(
            filters_of(request),
            order_by=column or "key",
            descending=descending,
            after=after,
            skip=request.skip,
            limit=self._engine.limits.page_length(request.page_size) + 1,
            inputs=not request.omit_payloads,
        )
        return query, digest

    async def _scan(self, query: RolloutQuery) -> AsyncIterator[LoadedRollout]:
        """Yield matching rollouts, beyond the limit of the query if there are more."""
        storage = self._engine.storage
        if not query.failure_contains:
            async for loaded in storage.scan_rollouts(query):
                yield loaded
            return
        # The back end searches whole records of attempts, and skips rollouts before they are looked at here.
        matches, skip = filters.matches_failure(query), query.skip
        part, count = replace(query, skip=0), query.limit
        while count == part.limit:
            count = 0
            async for loaded in storage.scan_rollouts(part):
                count += 1
                part = replace(part, after=_place(query, loaded))
                if not matches(loaded):
                    continue
                if skip:
                    skip -= 1
                else:
                    yield loaded
            await asyncio.sleep(0)

    async def _total_size(self, query: RolloutQuery) -> int:
        counts = self._live.state.counters.rollouts
        if RolloutQuery(statuses=query.statuses) == _filters(query):
            chosen = query.statuses or counts
            return sum(counts.get(status, 0) for status in chosen)
        if query.failure_contains:
            every = replace(query, order_by="key", descending=False, after=None, skip=0)
            every = replace(every, limit=COUNTED_AT_ONCE, inputs=False)
            return sum([1 async for _ in self._scan(every)])
        return sum((await self._engine.storage.count_rollouts(query)).values())

    async def update_rollout(self, request: UpdateRolloutRequest) -> UpdateRolloutResponse:
        """Change fields of a rollout."""
        self._engine.committer.admit()
        given = request.rollout
        entry = await load_member(
            self._engine,
            given.rollout_id,
            "rollout.rollout_id",
            group_id=given.group_id,
            inputs=True,
        )
        if (answer := self._engine.requests.find("UpdateRollout", request)) is not None:
            return await self._enqueue.replay(UpdateRolloutResponse.FromString(answer))
        mask = request.update_mask if request.HasField("update_mask") else None
        paths = mask_paths(mask, given, UPDATABLE)
        self._check_rollout_update(given, paths)
        if "group_id" in paths and given.group_id != entry.rollout.group_id:
            self._live.groups.check_room({given.group_id: 1})
        now = self._live.now()
        transition = Transition()
        if "status" in paths:
            transition = lifecycle.set_status(entry.rollout, given.status, now)
        record = self._updated(transition.rollout or entry.rollout, given, paths)
        self._live.apply(entry, None, transition._replace(rollout=record), now)
        if "input_json" in paths:
            self._live.put_input(entry, given.input_json)
        self._settle_update(entry, paths)
        reply = UpdateRolloutResponse()
        entry.shown().compose_within(reply.rollout, self._engine.limits.message_bytes)
        if request.request_id:
            self._engine.remember("UpdateRollout", request, references(reply))
        self._engine.polls.serve()
        await self._engine.commit()
        return reply

    def _settle_update(self, entry: Entry, paths: list[str]) -> None:
        """Have the queue and the deadlines of live attempts follow changed fields."""
        if not {"priority", "mode", "queue", "labels", "group_id"}.isdisjoint(paths):
            self._live.requeue(entry)
        if "labels" in paths:
            self._live.save_labels(entry, clear=True)
        if "config" in paths:
            for attempt in entry.attempts.values():
                if lifecycle.is_live(attempt.record):
                    self._live.deadlines.arm(attempt)

    def _check_rollout_update(self, given: Rollout, paths: list[str]) -> None:
        if "status" in paths:
            check_enum("rollout.status", RolloutStatus, given.status)
        if "input_json" in paths:
            if not given.input_json:
                raise FieldInvalid("rollout.input_json", "cannot be cleared; null is a JSON value")
            if len(given.input_json) > self._engine.limits.input_bytes:
                raise PayloadTooLarge(
                    "rollout.input_json", len(given.input_json), self._engine.limits.input_bytes
                )
            check_json("rollout.input_json", given.input_json)
        if "mode" in paths:
            check_enum("rollout.mode", RolloutMode, given.mode, unspecified=True)
        if "group_id" in paths:
            check_label("rollout.group_id", given.group_id)
        if "queue" in paths:
            check_queue("rollout.queue", given.queue)
        if "labels" in paths:
            check_labels("rollout.labels", given.labels)
        if "config" in paths:
            check_config("rollout.config", given.config)
        if "metadata_json" in paths:
            check_metadata(
                "rollout.metadata_json", given.metadata_json, self._engine.limits.metadata_bytes
            )
        resources_id = given.resources_id if "resources_id" in paths else ""
        if resources_id not in ("", LATEST) and resources_id not in self._live.state.resources:
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
        """Cancel the rollouts that have not finished."""
        self._engine.committer.admit(report=True)
        ids = list(request.rollout_ids)
        self._engine.check_batch("rollout_ids", len(ids))
        for i, rollout_id in enumerate(ids):
            check_id(f"rollout_ids[{i}]", rollout_id)
        failures = self._engine.committer.failures
        with self._live.state.held:
            entries = {e.rollout.rollout_id: e for e in await self._engine.load_many(ids)}
            for rollout_id in ids:
                if rollout_id not in entries:
                    raise RolloutNotFound(rollout_id)
            cancelled = await self._bulk.prepare_cancelled([entries[i] for i in ids])
            self._engine.check_unbroken(failures)
            # No other task runs from here to the seal.
            if (answer := self._engine.requests.find("CancelRollouts", request)) is not None:
                reply = CancelRolloutsResponse.FromString(answer)
                if not reply.rollouts:  # it is kept without the ids that are in the request
                    for rollout_id in ids:
                        reply.rollouts.add().rollout_id = rollout_id
                return await self._enqueue.replay(reply, self._engine.limits.answer_bytes)
            self._bulk.cancel_all(cancelled, self._live.now())
            shown = [entries[rollout_id].shown() for rollout_id in ids]
            if request.request_id:
                self._engine.remember("CancelRollouts", request, CancelRolloutsResponse())
            self._engine.polls.serve()  # consumers may have room, or groups have begun
            number = self._engine.seal_changes()
        reply = CancelRolloutsResponse()
        targets = (reply.rollouts.add() for _ in ids)
        await self._bulk.settle_cancelled(cancelled)
        await compose_all(self._engine, shown, targets, self._engine.limits.answer_bytes)
        await self._engine.durable_since(number, failures)
        return reply


def _place(query: RolloutQuery, loaded: LoadedRollout) -> tuple[Any, int]:
    """Return where a rollout is in the order of a query."""
    return filters.sort_value(query, loaded.measured()), loaded.row.key


def _filters(query: RolloutQuery) -> RolloutQuery:
    """Return the filters of a query, without its order and page."""
    names = ("any_of", "order_by", "descending", "after", "skip", "limit", "inputs")
    return replace(query, **{name: getattr(RolloutQuery, name) for name in names})
