"""PullFinished: takes finished rollouts or groups of a consumer."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.groups import sound_groups
from lightningstore.service.engine.pace import Pace
from lightningstore.service.engine.subscription import Item, Subscription
from lightningstore.service.engine.waiters import Waiter
from lightningstore.service.operations.candidates import (
    DELIVERY_BYTES,
    Candidate,
    Choice,
    Found,
    of_rollout,
    record_of,
)
from lightningstore.service.operations.claims import DEADLINE_MARGIN
from lightningstore.service.operations.consumers import ConsumerRecords
from lightningstore.service.rules import consumers as rules
from lightningstore.service.rules.errors import BatchTooLarge, FieldInvalid
from lightningstore.service.rules.groups import Tally
from lightningstore.service.rules.limits import CHUNK_BYTES
from lightningstore.service.rules.rows import GroupRow, RolloutQuery, Shown
from lightningstore.service.rules.times import NANOS, check_duration, nanoseconds, seconds
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.consumer_pb2 import (
    DELIVERY_STATE_REDELIVERY,
    PullFinishedRequest,
    PullFinishedResponse,
)

#: Rollouts, and groups, that are read at a time.
ROLLOUTS_AT_ONCE, GROUPS_AT_ONCE = 64, 8
#: Rollouts that are read at least, some of which may not match.
LEAST_AT_ONCE = 8
#: Above the number of members that any group has.
ALL = 1 << 40


class Pull(NamedTuple):
    """A call of PullFinished."""

    request: PullFinishedRequest
    #: Maximum number of items.
    most: int
    #: Monotonic time after which it reads no more, and that of its deadline, after which it delivers nothing.
    stop: float
    deadline: float


class Pulls:
    """PullFinished."""

    def __init__(self, engine: Engine, records: ConsumerRecords) -> None:
        self._engine = engine
        self._live = engine.live
        self._records = records

    async def pull_finished(
        self, request: PullFinishedRequest, time_remaining: float | None = None
    ) -> PullFinishedResponse:
        """Deliver items, and wait for them if requested.

        `time_remaining` is the time in seconds until the call's deadline, None without one.
        """
        self._engine.committer.admit()
        least, most = _check(request)
        began = self._engine.clock.monotonic()
        left = math.inf if time_remaining is None else time_remaining
        stop = began + max(left - DEADLINE_MARGIN, left / 2)
        until = began + min(seconds(request.wait), left - DEADLINE_MARGIN)
        call = Pull(request, most, stop, began + left)
        sub = self._records.find(request.consumer, "consumer")
        waiter = Waiter()
        self._engine.waiters.enter(waiter)
        sub.waiting[waiter] = least
        try:
            while True:
                waiter.ready.clear()
                is_over = self._engine.clock.monotonic() >= until or self._engine.closing
                least = 1 if is_over and request.partial_ok else least
                delivered = await self._take(sub, call, least)
                if delivered is not None or is_over:
                    return await self._answer(delivered or [])
                self._live.consumers.wake(sub, below=least)  # others may have enough
                await waiter.wait(self._engine.clock, until)
                if waiter.error is not None:
                    raise waiter.error
        finally:
            self._engine.waiters.unregister(waiter, ())
            del sub.waiting[waiter]
            self._live.consumers.wake(sub)  # others may find what is left

    async def _take(
        self, sub: Subscription, call: Pull, least: int
    ) -> list[tuple[Item, Candidate]] | None:
        """Deliver at least `least` items, or return None. They are durable when this returns.

        A repeat returns what was delivered before and is not acknowledged.
        """
        failures = self._engine.committer.failures
        async with sub.lock:
            self._check(sub, failures)
            answer = self._engine.requests.find("PullFinished", call.request)
            if answer is not None:
                return await self._repeated(sub, PullFinishedResponse.FromString(answer))
            while True:
                self._live.consumers.expire()
                self._check(sub, failures)
                if sub.available < least:
                    self._engine.seal_changes()
                    return None
                sub.begin_reading()
                await self._engine.barrier()
                found = await self._gather(sub, call)
                self._check(sub, failures)
                choice = self._choose(sub, found, call.most)
                delivered = None
                is_late = self._engine.clock.monotonic() >= call.deadline
                if choice.is_enough(least) and not is_late:
                    delivered = self._hand_out(sub, call.request, choice)
                    break
                if is_late or not choice.is_outdated:
                    self._postpone(sub, choice)
                    break
            self._engine.polls.serve()  # stale items hold no claims back any more
            number = self._engine.seal_changes()
        await self._engine.durable_since(number, failures)
        return delivered

    def _check(self, sub: Subscription, failures: int) -> None:
        """Raise StorageFailed or ConsumerNotFound if the consumer is no longer the one that is in memory."""
        self._engine.check_unbroken(failures)
        if not self._live.consumers.holds(sub):
            raise rules.ConsumerNotFound(sub.name)

    # Reading

    async def _gather(self, sub: Subscription, call: Pull) -> Found:
        """Read items that may be delivered, up to a number and to the bytes of an answer, as long as there is time."""
        room, count = self._engine.limits.answer_bytes, 0
        again: list[Candidate] = []
        async for candidate in self._again(sub, sub.redeliverable(call.most)):
            again.append(candidate)
            room -= candidate.size
            if room < 0:
                return Found(again, [], sub.cursor)
        fresh: list[Candidate] = []
        through = max(sub.cursor, sub.start)
        pages = self._groups_after if sub.by_group else self._rollouts_after
        latest, matched = self._live.state.counters.resources_updates, sub.matched
        async for candidates, reached in pages(sub, through, call.most):
            for candidate in candidates:
                if room < 0 or count + len(again) >= call.most:
                    return Found(again, fresh, through)
                through = candidate.number
                lag = rules.lag_of(latest, candidate.publish_number)
                if rules.is_skipped(sub.settings, lag):
                    fresh.append(candidate._replace(rollouts=[], size=0))
                    continue
                fresh.append(candidate)
                count += 1
                room -= candidate.size
            through = reached
            if not fresh:
                sub.pass_over(through, matched)
            is_over = self._engine.clock.monotonic() >= call.stop
            if is_over or room < 0 or count + len(again) >= call.most:
                break
        return Found(again, fresh, through)

    async def _again(self, sub: Subscription, items: Sequence[Item]) -> AsyncIterator[Candidate]:
        """Yield items that were delivered before, those that can be read."""
        at_once = GROUPS_AT_ONCE if sub.by_group else ROLLOUTS_AT_ONCE
        for start in range(0, len(items), at_once):
            part = {item.record.item_id: item for item in items[start : start + at_once]}
            found: dict[str, Candidate] = {}
            if sub.by_group:
                rows, _ = await sound_groups(self._engine.storage, list(part))
                for row in rows:
                    found[row.record.group_id] = await self._group(row)
            else:
                found = await self._loaded(list(part))
            for item_id, item in part.items():
                candidate = found.get(item_id)
                if candidate is not None and candidate.number == item.number:
                    yield candidate
                elif item.number not in sub.touched and item_id not in sub.touched:
                    self._leave_out(sub, item)

    def _leave_out(self, sub: Subscription, item: Item) -> None:
        """Drop an item that is damaged: each pull would try to read it."""
        if sub.items.get(item.number) is item:
            self._live.consumers.end(item)

    async def _loaded(self, rollout_ids: list[str]) -> dict[str, Candidate]:
        """Return finished rollouts by id, those that can be read."""
        return {
            entry.rollout.rollout_id: of_rollout(entry.shown())
            for entry in await self._engine.load_sound(rollout_ids)
            if entry.rollout.completion_number
        }

    async def _rollouts_after(
        self, sub: Subscription, number: int, most: int
    ) -> AsyncIterator[tuple[list[Candidate], int]]:
        """Yield the rollouts that match after a completion number, and the numbers up to which these are all.

        `most` is the number that the caller wants.
        """
        waiters, pace, least = self._engine.waiters, Pace(), LEAST_AT_ONCE
        while number < (last := waiters.published):
            recent = waiters.recent(number, ROLLOUTS_AT_ONCE)
            if recent is None:
                count = min(pace.count, max(least, most))
                loaded = await self._engine.storage.completions(number, count)
                pace.note(len(each.input_json) for each in loaded)
                shown = [each.shown() for each in loaded]
            else:
                shown = [completion.shown for completion in recent]
                await asyncio.sleep(0)
            shown = [s for s in shown if s.rollout.completion_number <= last]
            number = shown[-1].rollout.completion_number if shown else last
            found = [of_rollout(s) for s in shown if sub.filter.matches(s.rollout)]
            most -= len(found)
            if not found:
                least *= 4
            yield found, number

    async def _groups_after(
        self, sub: Subscription, number: int, _: int
    ) -> AsyncIterator[tuple[list[Candidate], int]]:
        """Yield the same of groups."""
        while number < (last := self._engine.waiters.published_groups):
            rows = await self._engine.storage.group_completions(number, GROUPS_AT_ONCE)
            rows = [row for row in rows if row.record.completion_number <= last]
            for row in rows:
                number = row.record.completion_number
                tally = sub.tallies.get(row.record.group_id)
                matches = tally is not None and tally.number == number and tally.finished > 0
                yield [await self._group(row)] if matches else [], number
            if not rows:
                number = last
                yield [], number

    async def _group(self, row: GroupRow) -> Candidate:
        """Return a group with its members, of which some may lack their payloads."""
        tally, members = Tally(), list[Shown]()
        room, whole, size = self._engine.limits.message_bytes - CHUNK_BYTES, 0, 0
        attempts: list[Attempt | None] = []
        record = row.record
        query = RolloutQuery(group_ids=frozenset([record.group_id]), limit=ALL)
        async for loaded in self._engine.storage.scan_rollouts(query):
            shown = loaded.shown()
            tally.add(shown.rollout, shown.attempt)
            attempts.append(shown.attempt)
            if whole == len(members) and size + shown.size() <= room // 2:
                whole += 1
                size += shown.size()
            else:
                shown = shown._replace(input_json=b"")
                size += shown.bare_size()
            members.append(shown)
        group = tally.filled(record)
        size += group.ByteSize() + DELIVERY_BYTES
        if size > room:
            members, whole, size = [], 0, group.ByteSize() + DELIVERY_BYTES
        return Candidate(
            record_of(record.completion_number, record.group_id),
            nanoseconds(record.end_time),
            rules.publish_number_of(attempts),
            members,
            size,
            whole,
            group,
        )

    # Delivering

    def _choose(self, sub: Subscription, found: Found, most: int) -> Choice:
        """Choose among what was found, in order. No other task runs from here to the seal."""
        choice = Choice(max(sub.cursor, sub.start), self._engine.limits.answer_bytes, most)
        if self._choose_again(sub, found.again, choice):
            self._choose_fresh(sub, found, choice)
        return choice

    def _choose_again(self, sub: Subscription, again: list[Candidate], choice: Choice) -> bool:
        """Choose among items to be delivered again; return whether the answer has room for all of them."""
        latest = self._live.state.counters.resources_updates
        for candidate in again:
            item = sub.items.get(candidate.number)
            if item is None or item.gone or item.state != DELIVERY_STATE_REDELIVERY:
                continue
            lag = rules.lag_of(latest, candidate.publish_number)
            if rules.is_skipped(sub.settings, lag):
                self._skip(sub, [candidate])
                choice.is_outdated = True  # others may be read in its place
            elif not choice.add(candidate, lag):
                return False
        return True

    def _choose_fresh(self, sub: Subscription, found: Found, choice: Choice) -> None:
        """Choose among new items, up to the first that has changed since."""
        latest = self._live.state.counters.resources_updates
        matched = min(sub.matched, default=ALL)
        for candidate in found.fresh:
            number = candidate.number
            if number >= matched:
                break
            if self._is_gone(sub, candidate):
                choice.through = number
                continue
            lag = rules.lag_of(latest, candidate.publish_number)
            is_stale = rules.is_skipped(sub.settings, lag)
            if self._has_changed(sub, candidate) or not (is_stale or candidate.size):
                choice.is_outdated = True
                return
            if is_stale:
                choice.skipped.append(candidate)
            elif not choice.add(candidate, lag):
                return
            choice.through = number
            choice.passed += 1
        if matched <= found.through:
            choice.is_outdated = True
            return
        choice.through = max(choice.through, found.through)

    def _has_changed(self, sub: Subscription, candidate: Candidate) -> bool:
        """Return whether an item has changed since it was read."""
        return candidate.number in sub.touched or (
            sub.by_group and candidate.item_id in sub.touched
        )

    def _is_gone(self, sub: Subscription, candidate: Candidate) -> bool:
        """Return whether a group was reopened or removed since it was read. A rollout that was is loaded again."""
        if not sub.by_group:
            return False
        tally = sub.tallies.get(candidate.item_id)
        return tally is None or tally.number != candidate.number

    def _postpone(self, sub: Subscription, choice: Choice) -> None:
        """Deliver nothing: remember what is stale, and move past what is not to be delivered."""
        if not choice.chosen:
            self._skip(sub, choice.skipped)
            self._advance(sub, choice)
            return
        sub.note_stale(candidate.number for candidate in choice.skipped)
        fresh = [c.number for c, _ in choice.chosen if c.number > sub.cursor]
        first = min([*fresh, *sub.stale], default=choice.through + 1)
        sub.start = max(sub.start, first - 1)

    def _skip(self, sub: Subscription, skipped: list[Candidate]) -> None:
        """Count stale items, which are never delivered."""
        for candidate in skipped:
            if (item := sub.items.get(candidate.number)) is not None:
                self._live.consumers.end(item)
        sub.skipped += len(skipped)
        if skipped:
            self._live.consumers.save(sub)
            self._live.shelf.release()
            self._engine.polls.serve()  # they hold no claims back any more

    def _advance(self, sub: Subscription, choice: Choice) -> None:
        counters = self._live.state.counters
        last = counters.group_completion_number if sub.by_group else counters.completion_number
        if choice.through > sub.cursor:
            sub.advance(choice.through, last, choice.passed)
            self._live.consumers.save(sub)
        self._engine.polls.serve()  # what was skipped is not outstanding any more

    def _hand_out(
        self, sub: Subscription, request: PullFinishedRequest, choice: Choice
    ) -> list[tuple[Item, Candidate]]:
        """Deliver the chosen items, with one commit."""
        consumers = self._live.consumers
        self._skip(sub, choice.skipped)
        deadline = sub.settings.ack_deadline
        seconds_ns = deadline.seconds * NANOS + deadline.nanos
        until = consumers.until(seconds_ns)
        kept, delivered = PullFinishedResponse(), []
        for delivery_id, (candidate, lag) in zip(rules.delivery_ids(), choice.chosen, strict=False):
            record = candidate.record
            record.delivery_id = delivery_id
            record.delivery_count = 1
            if lag:
                record.lag = lag
            if (known := sub.items.get(record.completion_number)) is not None:
                record.delivery_count += known.record.delivery_count
                record.note = known.record.note
            delivered.append((consumers.deliver(sub, record, candidate.end_ns, until), candidate))
            kept.deliveries.add().delivery_id = record.delivery_id
        self._advance(sub, choice)
        self._engine.remember("PullFinished", request, kept)
        return delivered

    async def _repeated(
        self, sub: Subscription, answer: PullFinishedResponse
    ) -> list[tuple[Item, Candidate]]:
        """Return what a repeated call has delivered, as far as it is not acknowledged."""
        ids = (each.delivery_id for each in answer.deliveries)
        items = [sub.by_id[i] for i in ids if i in sub.by_id]
        current = {item.number: item for item in items if not item.gone and not item.has_ended}
        sub.begin_reading()
        await self._engine.barrier()
        room, found = self._engine.limits.answer_bytes, list[tuple[Item, Candidate]]()
        async for candidate in self._again(sub, list(current.values())):
            # The rollouts may be larger than they were when they were delivered.
            fits = candidate.size <= room or not found
            room -= candidate.size if fits else candidate.bare_size()
            given = candidate if fits else candidate._replace(whole=0)
            found.append((current[candidate.number], given))
        return found

    # Answering

    async def _answer(self, delivered: list[tuple[Item, Candidate]]) -> PullFinishedResponse:
        """Return the response with these deliveries, composed in slices."""
        reply, turn = PullFinishedResponse(), Turn()
        whole = [shown for _, c in delivered for shown in c.rollouts[: c.whole]]
        loaded = iter(await self._engine.with_inputs(whole))
        for item, candidate in delivered:
            delivery = reply.deliveries.add()
            self._live.consumers.fill(item, delivery)
            if candidate.group is not None:
                delivery.group.CopyFrom(candidate.group)
            for i, bare in enumerate(candidate.rollouts):
                into = delivery.rollout if candidate.group is None else delivery.members.add()
                if i < candidate.whole:
                    next(loaded).compose_within(into, self._engine.limits.message_bytes)
                else:
                    bare.compose_bare(into)
                if turn.over():
                    await turn.next()
        await self._engine.barrier()
        return reply


def _check(request: PullFinishedRequest) -> tuple[int, int]:
    """Return the least and the most number of items. Raises FieldInvalid, BatchTooLarge."""
    for name in ("max_items", "min_items"):
        if getattr(request, name) < 0:
            raise FieldInvalid(name, "must not be negative")
    if request.max_items > rules.MAX_ITEMS:
        raise BatchTooLarge("max_items", request.max_items, rules.MAX_ITEMS)
    least, most = request.min_items or 1, request.max_items or 1
    if least > most:
        raise FieldInvalid("min_items", f"must not be greater than max_items, {most}")
    if request.HasField("wait"):
        check_duration("wait", request.wait)
    return least, most
