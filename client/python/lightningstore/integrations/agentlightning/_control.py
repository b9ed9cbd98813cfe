"""Rollouts, claims, attempts and workers."""

from __future__ import annotations

import asyncio
import os
import uuid
import warnings
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from agentlightning.store.base import UNSET, Unset
from agentlightning.types import (
    Attempt,
    AttemptedRollout,
    AttemptStatus,
    EnqueueRolloutRequest,
    PaginatedResult,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutStatus,
    TaskInput,
    Worker,
    WorkerStatus,
)
from lightningstore import client
from lightningstore.client import NotFoundError, RawJSON, RolloutSpec
from lightningstore.integrations.agentlightning import _paging
from lightningstore.integrations.agentlightning._connection import Connected, logger
from lightningstore.integrations.agentlightning._errors import AWAY, refusals
from lightningstore.integrations.agentlightning._records import (
    from_config,
    given,
    given_json,
    raw_json,
    to_attempt,
    to_attempted,
    to_rollout,
    to_worker,
    with_attempt,
)

#: Maximum number of rollouts, and bytes of their inputs, in one call: well below the server's
#: limits.
ENQUEUED_AT_ONCE = 1000
INPUT_BYTES_AT_ONCE = 16 << 20
PAGE = 1000
#: Timeout of a claim in seconds. A runner claims again, and must notice the end of its training.
CLAIM_TIMEOUT = 5.0
#: The fields by which the server sorts rollouts like agentlightning.
SERVER_SORTS = (None, "rollout_id", "start_time")

FilterLogic = Literal["and", "or"]
SortOrder = Literal["asc", "desc"]


class ControlMethods(Connected):
    """The methods of the control plane."""

    async def start_rollout(
        self,
        input: TaskInput,  # noqa: A002
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
        worker_id: str | None = None,
    ) -> AttemptedRollout:
        """Create a rollout with its first attempt, which is claimed at once.

        Raises:
            ValueError: The resources are unknown, or a value is not valid JSON.
        """
        with refusals():
            rollout = await self._client.start_rollout(
                raw_json(input),
                mode=mode,
                resources_id=resources_id or "",
                config=from_config(config),
                metadata=raw_json(metadata) if metadata else None,
                worker_id=worker_id or "",
            )
        return to_attempted(rollout)

    async def enqueue_rollout(
        self,
        input: TaskInput,  # noqa: A002
        mode: RolloutMode | None = None,
        resources_id: str | None = None,
        config: RolloutConfig | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> Rollout:
        """Add a rollout to the tail of the queue. Raises what `start_rollout` raises."""
        request = EnqueueRolloutRequest(
            input=input, mode=mode, resources_id=resources_id, config=config, metadata=metadata
        )
        return (await self.enqueue_many_rollouts([request]))[0]

    async def enqueue_many_rollouts(
        self, rollouts: Sequence[EnqueueRolloutRequest]
    ) -> Sequence[Rollout]:
        """Add rollouts to the tail of the queue, in order: 1,000 per call, each call atomic.

        Raises what `start_rollout` raises.
        """
        specs = [_spec(request) for request in rollouts]
        stored: list[Rollout] = []
        with refusals():
            for part in _parts(specs):
                found = await self._whole(await self._client.enqueue_rollouts(part))
                stored.extend(map(to_rollout, found))
        return stored

    async def dequeue_rollout(self, worker_id: str | None = None) -> AttemptedRollout | None:
        """Claim the next rollout of the queue; None if it is empty, or the server down for 5 s.

        A claim whose response was lost is returned by the worker's next call.
        """
        claimed = await self.dequeue_many_rollouts(limit=1, worker_id=worker_id)
        return claimed[0] if claimed else None

    async def dequeue_many_rollouts(
        self, *, limit: int = 1, worker_id: str | None = None
    ) -> Sequence[AttemptedRollout]:
        """Claim up to `limit` rollouts of the queue, as `dequeue_rollout` does; none for a limit below 1."""
        claimed: list[client.Rollout] = []
        while len(claimed) < limit:
            found = await self._claim(limit - len(claimed), worker_id)
            claimed.extend(found)
            # A response is truncated at 1,000 rollouts, or before an input that would make it too
            # large.
            size = sum(rollout.message.ByteSize() for rollout in found)
            if len(found) < PAGE and size < INPUT_BYTES_AT_ONCE:
                break
        return [to_attempted(rollout) for rollout in claimed]

    async def _claim(self, limit: int, worker_id: str | None) -> Sequence[client.Rollout]:
        who = (os.getpid(), worker_id, limit)
        request_id = self._unanswered.pop(who, None) or uuid.uuid4().hex
        longest = CLAIM_TIMEOUT if self._timeout is None else min(self._timeout, CLAIM_TIMEOUT)
        try:
            with refusals():
                return await self._whole(
                    await self._client.with_timeout(longest).dequeue_rollouts(
                        limit, worker_id=worker_id or "", request_id=request_id
                    )
                )
        except (*AWAY, asyncio.CancelledError) as error:
            self._unanswered[who] = request_id
            if isinstance(error, asyncio.CancelledError):
                raise
            logger.warning("no claim for worker %s, which may ask again: %s", worker_id, error)
            return []

    async def _whole(self, rollouts: Iterable[client.Rollout]) -> list[client.Rollout]:
        """Return rollouts with their inputs, which a repeated response may omit."""
        return [
            await self._client.get_rollout(rollout.rollout_id)
            if rollout.message.payloads_omitted
            else rollout
            for rollout in rollouts
        ]

    async def start_attempt(
        self, rollout_id: str, worker_id: str | None = None
    ) -> AttemptedRollout:
        """Claim a rollout by its id, regardless of its number of attempts.

        Raises:
            ValueError: The rollout is unknown or cancelled.
        """
        with refusals(rollout_id):
            return to_attempted(
                await self._client.start_attempt(rollout_id, worker_id=worker_id or "")
            )

    async def query_rollouts(
        self,
        *,
        status_in: Sequence[RolloutStatus] | None = None,
        rollout_id_in: Sequence[str] | None = None,
        rollout_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
        status: Sequence[RolloutStatus] | None = None,
        rollout_ids: Sequence[str] | None = None,
    ) -> PaginatedResult[Rollout]:
        """Find rollouts, in the order of enqueueing unless sorted.

        Those with attempts are AttemptedRollout.

        Raises:
            ValueError: An argument is invalid.
        """
        for name, value in (("status", status), ("rollout_ids", rollout_ids)):
            if value is not None:
                better = {"status": "status_in", "rollout_ids": "rollout_id_in"}[name]
                warnings.warn(
                    f"{name} is deprecated: use {better}", DeprecationWarning, stacklevel=2
                )
        _paging.check(
            Rollout,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            filter_logic=filter_logic,
        )
        filters = _filters(
            filter_logic,
            statuses=status if status_in is None else status_in,
            rollout_ids=rollout_ids if rollout_id_in is None else rollout_id_in,
            rollout_id_contains=rollout_id_contains,
        )
        if filters is None:
            return _paging.page([], limit, offset)
        with refusals():
            if sort_by in SERVER_SORTS:
                order = f"{sort_by} {sort_order}" if sort_by else ""
                found, total = await self._some_rollouts(filters, order, limit, offset)
                items = [with_attempt(rollout) for rollout in found]
                return PaginatedResult(items=items, limit=limit, offset=offset, total=total)
            everything, _ = await self._some_rollouts(filters, "", -1, 0)
        models = _paging.sort(map(with_attempt, everything), sort_by, sort_order)
        return _paging.page(models, limit, offset)

    async def _some_rollouts(
        self, filters: dict[str, Any], order_by: str, limit: int, offset: int
    ) -> tuple[list[client.Rollout], int]:
        """Return up to `limit` rollouts (-1: all) after the first `offset`, and how many match."""
        found: list[client.Rollout] = []
        token, total = "", 0
        while True:
            missing = PAGE if limit == -1 else min(limit - len(found), PAGE)
            page = await self._client.list_rollouts(
                **filters,
                order_by=order_by,
                page_size=max(missing, 1),
                page_token=token,
                skip=0 if token else offset,
                include_total_size=not token,
            )
            total = total if page.total_size is None else page.total_size
            found.extend(await self._whole(page))
            token = page.next_page_token
            if not token or (limit != -1 and len(found) >= limit):
                return (found if limit == -1 else found[:limit]), total

    async def query_attempts(
        self,
        rollout_id: str,
        *,
        sort_by: str | None = "sequence_id",
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Attempt]:
        """Return the attempts of a rollout. Raises ValueError for an unknown rollout."""
        _paging.check(Attempt, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset)
        with refusals(rollout_id):
            found = await _paging.every(
                lambda token: self._client.list_attempts(
                    rollout_id, page_size=PAGE, page_token=token
                )
            )
        attempts = list(map(to_attempt, found))
        return _paging.page(_paging.sort(attempts, sort_by, sort_order), limit, offset)

    async def get_rollout_by_id(self, rollout_id: str) -> Rollout | None:
        """Return a rollout, with its newest attempt if it has one; None if it is unknown."""
        if not rollout_id:
            return None
        with refusals():
            try:
                return with_attempt(await self._client.get_rollout(rollout_id))
            except NotFoundError:
                return None

    async def get_latest_attempt(self, rollout_id: str) -> Attempt | None:
        """Return the newest attempt of a rollout, None before the first.

        Raises:
            ValueError: The rollout is unknown.
        """
        with refusals(rollout_id):
            attempt = (await self._client.get_rollout(rollout_id)).latest_attempt
        return None if attempt is None else to_attempt(attempt)

    async def wait_for_rollouts(
        self, *, rollout_ids: list[str], timeout: float | None = None
    ) -> list[Rollout]:
        """Return the finished rollouts when all have finished or `timeout` seconds are over.

        A timeout of None has no limit; 0 or less returns at once. The result is in the order of
        `rollout_ids`.

        Raises:
            ValueError: A rollout is unknown.
        """
        if not rollout_ids:
            return []
        longest = None if timeout is None else max(timeout, 0.0)
        with refusals():
            async with self._client.wait_for_rollouts(rollout_ids, timeout=longest) as waiting:
                found = await self._whole(await waiting.results())
        finished = {rollout.rollout_id: to_rollout(rollout) for rollout in found}
        return [finished[rollout_id] for rollout_id in rollout_ids if rollout_id in finished]

    async def update_rollout(
        self,
        rollout_id: str,
        input: TaskInput | Unset = UNSET,  # noqa: A002
        mode: RolloutMode | Unset | None = UNSET,
        resources_id: str | Unset | None = UNSET,
        status: RolloutStatus | Unset = UNSET,
        config: RolloutConfig | Unset = UNSET,
        metadata: dict[str, Any] | Unset | None = UNSET,
    ) -> Rollout:
        """Change a rollout: UNSET keeps a field, None clears it.

        Raises:
            ValueError: The rollout is unknown, or the status cannot be set: only claims and spans
            set "preparing" and "running", and a finished rollout accepts no other final status.
        """
        with refusals(rollout_id):
            if status is None or config is None:
                raise ValueError("status and config cannot be None")
            rollout = await self._client.update_rollout(
                rollout_id,
                input=given(input) if isinstance(input, Unset) else raw_json(input),
                mode=given(mode),
                resources_id=given(resources_id),
                status=given(status),
                config=given(config) if isinstance(config, Unset) else from_config(config),
                metadata=given_json(metadata),
            )
        return to_rollout(rollout)

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"],  # noqa: PYI051
        status: AttemptStatus | Unset = UNSET,
        worker_id: str | Unset = UNSET,
        last_heartbeat_time: float | Unset = UNSET,
        metadata: dict[str, Any] | Unset | None = UNSET,
    ) -> Attempt:
        """Report the status of an attempt, or change it: UNSET keeps a field.

        A heartbeat time in the future counts as now.

        Raises:
            ValueError: The rollout or attempt is unknown, or the attempt has decided its rollout
            with another status.
        """
        heartbeat: Any = given(last_heartbeat_time)
        if isinstance(heartbeat, int | float):
            heartbeat = _time(heartbeat)
        with refusals(rollout_id, attempt_id):
            update = await self._client.update_attempt(
                rollout_id,
                attempt_id,
                status=given(status),
                worker_id=given(worker_id),
                last_heartbeat_time=heartbeat,
                metadata=given_json(metadata),
            )
        return to_attempt(update.attempt)

    async def query_workers(
        self,
        *,
        status_in: Sequence[WorkerStatus] | None = None,
        worker_id_contains: str | None = None,
        filter_logic: FilterLogic = "and",
        sort_by: str | None = None,
        sort_order: SortOrder = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[Worker]:
        """Find workers, by id unless sorted. Raises ValueError for invalid arguments."""
        _paging.check(
            Worker,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            filter_logic=filter_logic,
        )
        filters = _filters(filter_logic, statuses=status_in, worker_id_contains=worker_id_contains)
        workers: list[Worker] = []
        if filters is not None:
            with refusals():
                found = await _paging.every(
                    lambda token: self._client.list_workers(
                        **filters, page_size=PAGE, page_token=token
                    )
                )
            workers.extend(map(to_worker, found))
        return _paging.page(_paging.sort(workers, sort_by, sort_order), limit, offset)

    async def get_worker_by_id(self, worker_id: str) -> Worker | None:
        """Return a worker, None if it is unknown."""
        if not worker_id:
            return None
        with refusals():
            try:
                return to_worker(await self._client.get_worker(worker_id))
            except NotFoundError:
                return None

    async def update_worker(
        self, worker_id: str, heartbeat_stats: dict[str, Any] | Unset = UNSET
    ) -> Worker:
        """Report that a worker is alive, and its statistics. An unknown worker is created.

        Raises:
            TypeError: heartbeat_stats is None.
            ValueError: The id is empty.
        """
        if heartbeat_stats is None:
            raise TypeError("heartbeat_stats: a dict is wanted, or UNSET to keep what is stored")
        stats: RawJSON | None = None
        if not isinstance(heartbeat_stats, Unset):
            stats = raw_json(heartbeat_stats)
        with refusals():
            return to_worker((await self._client.heartbeat(worker_id, stats=stats)).worker)


def _time(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        raise ValueError(
            f"last_heartbeat_time: seconds since 1970 are wanted, not {seconds!r}"
        ) from None


def _spec(request: EnqueueRolloutRequest) -> RolloutSpec:
    return RolloutSpec(
        raw_json(request.input),
        mode=request.mode,
        resources_id=request.resources_id or "",
        config=from_config(request.config),
        metadata=raw_json(request.metadata) if request.metadata else None,
    )


def _parts(specs: Sequence[RolloutSpec]) -> Iterator[list[RolloutSpec]]:
    part: list[RolloutSpec] = []
    size = 0
    for spec in specs:
        size += len(spec.input)
        if part and (len(part) == ENQUEUED_AT_ONCE or size > INPUT_BYTES_AT_ONCE):
            yield part
            part, size = [], len(spec.input)
        part.append(spec)
    if part:
        yield part


def _filters(logic: str, **filters: Any) -> dict[str, Any] | None:
    """Return filters in the client's form; None if nothing can match.

    In agentlightning an empty list matches nothing and an empty text everything; in the client both
    are ignored.
    """
    said = {name: value for name, value in filters.items() if value is not None}
    everything = [name for name, value in said.items() if value == ""]
    nothing = [name for name, value in said.items() if value != "" and not len(value)]
    if logic == "or" and everything:
        return {}
    left = {k: v for k, v in said.items() if k not in everything and k not in nothing}
    if nothing and (logic == "and" or not left):
        return None
    return {**left, "filter_logic": logic}
