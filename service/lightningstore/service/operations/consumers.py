"""Consumers: create, get, list, update, delete; acknowledgements and deadlines of deliveries."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.counting import Counting
from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.pace import LOAD_AT_ONCE
from lightningstore.service.engine.subscription import Item, Subscription
from lightningstore.service.operations import watching
from lightningstore.service.rules import consumers as rules
from lightningstore.service.rules.checks import check_enum, mask_paths
from lightningstore.service.rules.consumers import (
    ConsumerExists,
    ConsumerNotFound,
    DeliveryEnded,
)
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import (
    BatchTooLarge,
    CompletionNumberBeyondEnd,
    FieldInvalid,
)
from lightningstore.service.rules.ids import check_label
from lightningstore.service.rules.pages import page_token, parse_page_token, query_digest
from lightningstore.service.rules.rows import ConsumerRow
from lightningstore.service.rules.times import NANOS, nanoseconds, stamp
from lightningstore.v1.consumer_pb2 import (
    ACK_OUTCOME_CONSUMED,
    ACK_OUTCOME_DROPPED,
    ACK_OUTCOME_RELEASED,
    CONSUMER_UNIT_GROUP,
    DELIVERY_STATE_SET_ASIDE,
    AcknowledgeRequest,
    AcknowledgeResponse,
    AckOutcome,
    Consumer,
    CreateConsumerRequest,
    CreateConsumerResponse,
    DeleteConsumerRequest,
    DeleteConsumerResponse,
    GetConsumerRequest,
    GetConsumerResponse,
    ListConsumersRequest,
    ListConsumersResponse,
    ListDeliveriesRequest,
    ListDeliveriesResponse,
    ModifyAckDeadlineRequest,
    ModifyAckDeadlineResponse,
    UpdateConsumerRequest,
    UpdateConsumerResponse,
)

logger = logging.getLogger(__name__)


class ConsumerRecords:
    """The calls of consumer.proto, except PullFinished."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live = engine.live

    def find(self, name: str, field: str = "name") -> Subscription:
        """Return a consumer. Raises FieldInvalid, ConsumerNotFound."""
        if not name:
            raise FieldInvalid(field, "required")
        sub = self._live.consumers.get(name)
        if sub is None:
            raise ConsumerNotFound(name)
        return sub

    # Consumers

    async def create_consumer(self, request: CreateConsumerRequest) -> CreateConsumerResponse:
        """Create a consumer, or return the one that was created in the same way."""
        self._engine.committer.admit()
        rules.check_new(request.consumer)
        created = rules.creation_digest(request.consumer)
        await self._engine.barrier()
        if (known := self._known(request.consumer.name, created)) is None:
            known = await self._create(request.consumer, created)
        reply = CreateConsumerResponse()
        await self._fill(known, reply.consumer)
        await self._engine.barrier()
        return reply

    def _known(self, name: str, created: int) -> Subscription | None:
        """Return the consumer of this name. Raises ConsumerExists if it was created in another way."""
        known = self._live.consumers.get(name)
        if known is not None and known.created != created:
            raise ConsumerExists(name)
        if known is None and len(self._live.consumers) >= rules.MAX_CONSUMERS:
            count = len(self._live.consumers) + 1
            raise BatchTooLarge("consumer", count, rules.MAX_CONSUMERS)
        return known

    async def _create(self, given: Consumer, created: int) -> Subscription:
        """Create a consumer, count its items, and tell queued rollouts that it may hold back from others."""
        record = rules.completed(given)
        groups, waiters = record.unit == CONSUMER_UNIT_GROUP, self._engine.waiters
        record.after_completion_number = watching.first_number(
            given.after_completion_number if given.HasField("after_completion_number") else None,
            waiters.published_groups if groups else waiters.published,
            "consumer.after_completion_number",
            CompletionNumberBeyondEnd,
        )
        record.create_time.CopyFrom(self._live.now())
        consumers, failures = self._live.consumers, self._engine.committer.failures
        sub = Subscription(ConsumerRow(0, created, record))
        consumers.follow(sub)
        self._live.follow_groups()
        try:
            await Counting(self._engine.storage, self._live, self._engine.barrier).count(sub)
            if record.max_outstanding:
                await self._tell_apart(sub)
            self._engine.check_unbroken(failures)
            # Nothing that was counted has changed since without being followed. The claimed ones are counted last.
            known = self._known(record.name, created)
        except BaseException:
            consumers.forget(sub)
            self._live.follow_groups()
            raise
        if known is not None:
            consumers.forget(sub)
            return known
        consumers.add(sub)
        sub.maximum = record.max_outstanding
        await self._engine.commit()
        return sub

    async def _tell_apart(self, sub: Subscription) -> None:
        """Have the queue keep rollouts apart that a consumer may hold back. Takes a few microseconds for each."""
        if not self._live.consumers.limit(sub):
            return
        live, turn = self._live, Turn()
        state = live.state
        for rollout_id in state.queue.ids():
            if rollout_id in state.queue:
                live.queue_due(state.entries[rollout_id])
            if turn.over():
                self._engine.polls.serve()
                self._engine.seal_changes()
                await turn.next()
                if state is not live.state:
                    return  # memory was loaded anew
        self._engine.polls.serve()

    async def get_consumer(self, request: GetConsumerRequest) -> GetConsumerResponse:
        """Return one consumer with its counts."""
        sub = self.find(request.name)
        reply = GetConsumerResponse()
        await self._fill(sub, reply.consumer)
        await self._engine.barrier()
        return reply

    async def list_consumers(self, request: ListConsumersRequest) -> ListConsumersResponse:
        """Return one page of the consumers, by name."""
        size = self._engine.limits.page_length(request.page_size)
        digest = query_digest(request, "page_size", "page_token")
        after = ""
        if request.page_token:
            (after,) = parse_page_token(request.page_token, digest, (str,))
        found = [sub for sub in self._live.consumers if sub.name > after]
        reply = ListConsumersResponse()
        for sub in found[:size]:
            await self._fill(sub, reply.consumers.add())
        if len(found) > size:
            reply.next_page_token = page_token(digest, [found[size - 1].name])
        await self._engine.barrier()
        return reply

    async def _fill(self, sub: Subscription, into: Consumer) -> None:
        """Fill an answer with a consumer and the time of its oldest item."""
        self._live.consumers.expire()
        into.CopyFrom(sub.shown())
        if (item := sub.oldest()) is not None:
            into.oldest_item_time.CopyFrom(stamp(item.end_ns))
        elif sub.backlog:
            end_ns = await self._first_waiting(sub)
            if end_ns:
                into.oldest_item_time.CopyFrom(stamp(end_ns))

    async def _first_waiting(self, sub: Subscription) -> int:
        """Return when the first item finished that waits for its first delivery, 0 if none is found."""
        matched = sub.matched
        await self._engine.barrier()
        storage, after = self._engine.storage, max(sub.cursor, sub.start)
        count = 1
        while True:
            if sub.by_group:
                groups = await storage.group_completions(after, count)
                for row in groups:
                    after = row.record.completion_number
                    tally = sub.tallies.get(row.record.group_id)
                    if tally is not None and tally.finished:
                        return nanoseconds(row.record.end_time)
                if not groups:
                    return 0
            else:
                rollouts = await storage.completions(after, count)
                for loaded in rollouts:
                    after = loaded.row.rollout.completion_number
                    if sub.filter.matches(loaded.row.rollout):
                        return nanoseconds(loaded.row.rollout.end_time)
                if not rollouts:
                    return 0
            sub.pass_over(after, matched)
            count = min(4 * count, LOAD_AT_ONCE)
            await asyncio.sleep(0)

    async def update_consumer(self, request: UpdateConsumerRequest) -> UpdateConsumerResponse:
        """Change settings of a consumer."""
        self._engine.committer.admit()
        given = request.consumer
        mask = request.update_mask if request.HasField("update_mask") else None
        paths = mask_paths(mask, given, rules.UPDATABLE)
        rules.check_settings(given, paths)
        sub = self.find(given.name, "consumer.name")
        failures = self._engine.committer.failures
        if "max_outstanding" in paths and given.max_outstanding:
            await self._tell_apart(sub)
            self._engine.check_unbroken(failures)
            if not self._live.consumers.holds(sub):
                raise ConsumerNotFound(given.name)
        changed = rules.updated(sub.settings, given, paths)
        self._live.consumers.expire()
        if changed != sub.settings:
            self._live.consumers.change_settings(sub, changed)
            sub.maximum = changed.max_outstanding
            self._live.consumers.wake(sub)
            self._engine.polls.serve()
        await self._engine.commit()
        reply = UpdateConsumerResponse()
        await self._fill(sub, reply.consumer)
        return reply

    async def delete_consumer(self, request: DeleteConsumerRequest) -> DeleteConsumerResponse:
        """Delete a consumer with its deliveries."""
        self._engine.committer.admit()
        if not request.name:
            raise FieldInvalid("name", "required")
        sub = self._live.consumers.get(request.name)
        if sub is not None:
            self._live.consumers.remove(sub)
            self._live.follow_groups()
            self._live.shelf.release()
            self._engine.polls.serve()
        elif not request.allow_missing:
            raise ConsumerNotFound(request.name)
        await self._engine.commit()
        return DeleteConsumerResponse()

    # Deliveries

    async def acknowledge(self, request: AcknowledgeRequest) -> AcknowledgeResponse:
        """End deliveries, all of them or none."""
        self._engine.committer.admit(report=True)
        _check_count(len(request.delivery_ids))
        check_enum("outcome", AckOutcome, request.outcome, unspecified=True)
        if len(request.note) > rules.MAX_NOTE_LENGTH:
            count = len(request.note)
            raise FieldInvalid("note", f"{count} characters, at most {rules.MAX_NOTE_LENGTH}")
        check_label("note", request.note)
        self._live.consumers.expire()
        sub = self.find(request.consumer, "consumer")
        if self._engine.requests.find("Acknowledge", request) is None:
            items = self._current(sub, request.delivery_ids)
            self._acknowledge(sub, items, request.outcome or ACK_OUTCOME_CONSUMED, request.note)
            self._engine.remember("Acknowledge", request, AcknowledgeResponse())
            self._engine.polls.serve()
        await self._engine.commit()
        return AcknowledgeResponse()

    def _current(self, sub: Subscription, delivery_ids: Iterable[str]) -> list[Item]:
        """Return the items of deliveries, each once. Raises DeliveryEnded if one of them has ended."""
        ids = dict.fromkeys(delivery_ids)
        ended = [i for i in ids if i not in sub.by_id or sub.by_id[i].has_ended]
        if ended:
            raise DeliveryEnded(sub.name, ended)
        return [sub.by_id[i] for i in ids]

    def _acknowledge(self, sub: Subscription, items: list[Item], outcome: int, note: str) -> None:
        consumers = self._live.consumers
        if outcome == ACK_OUTCOME_RELEASED:
            for item in items:
                was_set_aside = item.state == DELIVERY_STATE_SET_ASIDE
                count = 0 if was_set_aside else item.record.delivery_count
                consumers.release(item, evolve(item.record, delivery_count=count, note=note))
            consumers.wake(sub)
            return
        for item in items:
            consumers.end(item)
        if outcome == ACK_OUTCOME_DROPPED:
            sub.dropped += len(items)
            if items:
                logger.info("consumer %r: %d items were dropped: %s", sub.name, len(items), note)
        else:
            sub.consumed += len(items)
        if items:
            consumers.save(sub)
            self._live.shelf.release()

    async def modify_ack_deadline(
        self, request: ModifyAckDeadlineRequest
    ) -> ModifyAckDeadlineResponse:
        """Move the deadlines of deliveries, of all of them or none."""
        self._engine.committer.admit(report=True)
        _check_count(len(request.delivery_ids))
        if not request.HasField("ack_deadline"):
            raise FieldInvalid("ack_deadline", "required")
        rules.check_ack_deadline("ack_deadline", request.ack_deadline)
        self._live.consumers.expire()
        sub = self.find(request.consumer, "consumer")
        seconds_ns = request.ack_deadline.seconds * NANOS + request.ack_deadline.nanos
        for item in self._current(sub, request.delivery_ids):
            self._live.consumers.extend(item, seconds_ns)
        reply = ModifyAckDeadlineResponse()
        reply.ack_deadline_time.CopyFrom(stamp(self._engine.clock.wall_ns() + seconds_ns))
        await self._engine.commit()
        return reply

    async def list_deliveries(self, request: ListDeliveriesRequest) -> ListDeliveriesResponse:
        """Return one page of the deliveries of a consumer, by completion number."""
        size = self._engine.limits.page_length(request.page_size)
        self._engine.check_batch("states", len(request.states))
        rules.check_states("states", request.states)
        digest, after = query_digest(request, "page_size", "page_token"), 0
        if request.page_token:
            (after,) = parse_page_token(request.page_token, digest, (int,))
        self._live.consumers.expire()
        sub = self.find(request.consumer, "consumer")
        items = sub.page(frozenset(request.states), after, size + 1)
        reply = ListDeliveriesResponse()
        for item in items[:size]:
            self._live.consumers.fill(item, reply.deliveries.add())
        if len(items) > size:
            reply.next_page_token = page_token(digest, [items[size - 1].number])
        await self._engine.barrier()
        return reply


def _check_count(count: int) -> None:
    """Raise BatchTooLarge for too many deliveries: more would hold the event loop."""
    if count > rules.MAX_ITEMS:
        raise BatchTooLarge("delivery_ids", count, rules.MAX_ITEMS)
