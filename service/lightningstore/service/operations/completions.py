"""WaitForRollouts and WatchRollouts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import aclosing

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import Pace
from lightningstore.service.engine.waiters import ALIVE_SECONDS, Waiter
from lightningstore.service.operations import watching
from lightningstore.service.rules import lifecycle, wire
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    CompletionNumberBeyondEnd,
    FieldInvalid,
    GroupNotFound,
    RolloutNotFound,
)
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.rows import Completion
from lightningstore.service.rules.times import check_duration, seconds
from lightningstore.v1.completion_pb2 import (
    WaitForRolloutsRequest,
    WaitForRolloutsResponse,
    WaitSummary,
    WatchRolloutsRequest,
    WatchRolloutsResponse,
)

CHUNK_ROLLOUTS = 256
#: Maximum number of ids in one wait, as a multiple of the batch limit.
WAIT_BATCHES = 10
_WAITED = WaitForRolloutsResponse.ROLLOUTS_FIELD_NUMBER
_WATCHED = WatchRolloutsResponse.ROLLOUTS_FIELD_NUMBER


class Completions:
    """The calls of completion.proto."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    async def wait_for_rollouts(
        self, request: WaitForRolloutsRequest
    ) -> AsyncIterator[bytes | None]:
        """Yield None once registered, then serialised WaitForRolloutsResponses."""
        if request.HasField("timeout"):
            check_duration("timeout", request.timeout)
        waiter = Waiter()
        ids = await self._awaited(request)
        wanted = self._check_wait(request, ids)
        until = None
        if request.HasField("timeout"):
            until = self._engine.clock.monotonic() + seconds(request.timeout)
        self._engine.waiters.enter(waiter)
        try:
            # Registering must precede reading; otherwise finishes in between would be missed.
            await self._engine.waiters.register(waiter, ids)
            waiter.finished[:0] = await self._finished_already(ids)
            yield None
            open_ids = dict.fromkeys(ids)
            sent = 0
            while True:
                for chunk in _chunks(_fresh(waiter, open_ids)):
                    sent += len(chunk)
                    for completion in chunk:
                        self._engine.waiters.forget(waiter, completion.rollout_id)
                    yield await self._serialised(_WAITED, chunk)
                now = self._engine.clock.monotonic()
                if sent >= wanted or (until is not None and now >= until):
                    break
                tick = now + ALIVE_SECONDS
                await waiter.wait(self._engine.clock, tick if until is None else min(tick, until))
                if not waiter.finished and self._engine.clock.monotonic() >= tick:
                    yield b""
            yield self._summary(sent, open_ids)
        finally:
            self._engine.waiters.unregister(waiter, ids)

    async def _awaited(self, request: WaitForRolloutsRequest) -> dict[str, None]:
        """Return the ids of the rollouts that a request names by id or group.

        Raises:
            BatchTooLarge, GroupNotFound
        """
        for field, named in (
            ("rollout_ids", request.rollout_ids),
            ("group_ids", request.group_ids),
        ):
            if len(named) > WAIT_BATCHES * self._engine.limits.batch_items:
                raise BatchTooLarge(
                    field, len(named), WAIT_BATCHES * self._engine.limits.batch_items
                )
        ids: dict[str, None] = {}
        turn = Turn()
        for rollout_id in request.rollout_ids:
            ids[rollout_id] = None
            if turn.over():
                await turn.next()
        for group_id in dict.fromkeys(request.group_ids):
            await self._engine.barrier()
            members = await self._engine.storage.group_members(group_id)
            if not members:
                raise GroupNotFound(group_id)
            for member in members:
                ids[member] = None
                if turn.over():
                    await turn.next()
        return ids

    async def _serialised(self, field: int, completions: list[Completion]) -> bytes:
        """Return finishes as a repeated field of a message; missing inputs are loaded."""
        lacking = [completion for completion in completions if completion.shown.lacks_input]
        whole = await self._engine.with_inputs([completion.shown for completion in lacking])
        for completion, shown in zip(lacking, whole, strict=True):
            completion.shown = shown
        most = self._engine.limits.message_bytes - CHUNK_BYTES
        return b"".join(wire.field(field, completion.wire(most)) for completion in completions)

    def _summary(self, sent: int, open_ids: dict[str, None]) -> bytes:
        """Return the last message of a wait, with as many open ids as fit into half a message."""
        summary = WaitSummary(finished_count=sent, open_count=len(open_ids))
        room = self._engine.limits.answer_bytes
        for rollout_id in open_ids:
            room -= 4 * len(rollout_id) + 4  # at most, in UTF-8, with tag and length
            if room < 0:
                break
            summary.open_rollout_ids.append(rollout_id)
        return WaitForRolloutsResponse(summary=summary).SerializeToString()

    @staticmethod
    def _check_wait(request: WaitForRolloutsRequest, ids: dict[str, None]) -> int:
        """Return the number of finishes that ends the wait."""
        if not ids:
            raise FieldInvalid("rollout_ids", "required, unless group_ids are given")
        if not request.HasField("min_count"):
            return len(ids)
        if not 0 <= request.min_count <= len(ids):
            raise FieldInvalid("min_count", f"must be from 0 to {len(ids)}, the number of rollouts")
        return request.min_count

    async def _finished_already(self, ids: dict[str, None]) -> list[Completion]:
        """Return the finished rollouts, in the order of the request. Raises RolloutNotFound."""
        finished: dict[str, Completion] = {}
        stored: list[str] = []
        turn = Turn()
        for rollout_id in ids:
            if turn.over():
                await turn.next()
            entry = self._live.state.entries.get(rollout_id)
            if entry is None:
                stored.append(rollout_id)
            # A finish that was not published yet will be published to this waiter too.
            elif 0 < entry.rollout.completion_number <= self._engine.waiters.published:
                finished[rollout_id] = entry.completion()
        pace, start = Pace(), 0
        while start < len(stored):
            await asyncio.sleep(0)
            part = stored[start : start + pace.count]
            start += len(part)
            found = {r.row.rollout.rollout_id: r for r in await self._engine.stored(part)}
            pace.note(len(loaded.input_json) for loaded in found.values())
            for rollout_id in part:
                loaded = found.get(rollout_id)
                if loaded is None:
                    raise RolloutNotFound(rollout_id)
                if lifecycle.is_finished(loaded.row.rollout):
                    finished[rollout_id] = loaded.completion()
        await self._engine.barrier()  # the finish may have changed since
        return [finished[i] for i in ids if i in finished]

    async def watch_rollouts(self, request: WatchRolloutsRequest) -> AsyncIterator[bytes | None]:
        """Yield None once the watch is registered, then serialised WatchRolloutsResponses."""
        await watching.prepared(self._engine, request.store_id)
        given = request.HasField("after_completion_number")
        waiters, pace = self._engine.waiters, Pace()
        through = watching.first_number(
            request.after_completion_number if given else None,
            waiters.published,
            "after_completion_number",
            CompletionNumberBeyondEnd,
        )

        async def after(number: int) -> AsyncGenerator[watching.Part, None]:
            for chunk in _chunks(await self._completions_after(number, pace)):
                last = chunk[-1].number
                yield await self._serialised(_WATCHED, chunk) + self._progress(last), last

        registered = waiters.watching()
        stream = watching.messages(self._engine, registered, through, self._progress, after)
        async with aclosing(stream) as messages:
            async for message in messages:
                yield message

    def _progress(self, through: int) -> bytes:
        return WatchRolloutsResponse(
            through_completion_number=through, store_id=self._engine.store_id
        ).SerializeToString()

    async def _completions_after(self, number: int, pace: Pace) -> list[Completion]:
        recent = self._engine.waiters.recent(number, CHUNK_ROLLOUTS)
        if recent is not None:
            return recent
        stored = await self._engine.storage.completions(number, pace.count)
        pace.note(len(loaded.input_json) for loaded in stored)
        found = [loaded.completion() for loaded in stored]
        return [
            completion
            for completion in found
            if completion.number <= self._engine.waiters.published
        ]


def _fresh(waiter: Waiter, open_ids: dict[str, None]) -> list[Completion]:
    """Return the new finishes of a waiter, each rollout once, and remove them from the open ids."""
    fresh = []
    finished, waiter.finished = waiter.finished, []
    for completion in finished:
        if completion.rollout_id in open_ids:
            del open_ids[completion.rollout_id]
            fresh.append(completion)
    return fresh


def _chunks(completions: Iterable[Completion]) -> Iterator[list[Completion]]:
    """Split a list into messages of up to 1 MiB; a larger rollout gets its own message."""
    chunk: list[Completion] = []
    size = 0
    for completion in completions:
        if chunk and size + completion.size > CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(completion)
        size += completion.size
    if chunk:
        yield chunk
