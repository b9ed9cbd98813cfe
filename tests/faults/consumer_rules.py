"""The rules of the model test about consumers."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis.stateful import initialize, precondition, rule
from lightningstore.v1 import consumer_pb2
from lightningstore.v1.rollout_pb2 import RolloutStatus

from tests.faults.consumer_model import Consumer, Refused
from tests.faults.model import Model

PICK = st.integers(0, 1 << 16)
LIMITS = st.sampled_from([0, 0, 1, 2, 4])
LAGS = st.sampled_from([None, None, 0, 1])
FINISHES = st.sampled_from(["succeeded", "failed"])
MAX_DELIVERIES = st.sampled_from([0, 0, 1, 2])


class ConsumerRules:
    """The part of a machine that creates consumers, pulls and acknowledges, and compares what they show."""

    model: Model
    store: Any
    loop: Any
    both: Any
    publish: Any
    start: Any
    put: Any
    pass_time: Any
    create_group: Any
    enqueue: Any
    enqueued: int
    #: Deliveries of each consumer so far, the latest last.
    given: dict[str, list[str]]

    def has_consumers(self) -> bool:
        return bool(self.model.consumers)

    def consumer(self, pick: int) -> tuple[str, Consumer]:
        names = sorted(self.model.consumers)
        name = names[pick % len(names)]
        return name, self.model.consumers[name]

    @initialize(
        by_group=st.booleans(),
        limits=st.tuples(LIMITS, MAX_DELIVERIES, LAGS, st.booleans()),
        size=st.integers(1, 3),
    )
    def begin_with_a_consumer(self, by_group: bool, limits: Any, size: int) -> None:
        self.create_consumer("a", by_group, (), (), True, limits)
        self.publish("a")
        self.run_group("g0", size, "")

    @rule(group=st.sampled_from(["g0", "g1", "g2"]), size=st.integers(1, 3), status=FINISHES)
    def run_group(self, group: str, size: int, status: str) -> None:
        """Create a group, and enqueue as many members and one rollout that is none. With a status they finish."""
        if group in self.model.groups or self.model.members(group):
            return
        self.create_group(group, size, "")
        for name in (*[group] * size, ""):
            self.enqueue(0, 1, 0, 7, "latest", "", name)
        if status:
            self.finish_group(list(self.model.groups).index(group), status)

    @precondition(lambda self: self.model.rollouts)
    @rule(picks=st.lists(PICK, min_size=1, max_size=4), status=FINISHES)
    def finish(self, picks: list[int], status: str) -> None:
        for pick in picks:
            self.put(pick, status)

    @precondition(lambda self: self.model.groups)
    @rule(pick=PICK, status=FINISHES)
    def finish_group(self, pick: int, status: str) -> None:
        names = list(self.model.groups)
        group = names[pick % len(names)]
        places = [n for n, r in enumerate(self.model.rollouts.values()) if r.group == group]
        for place in places:
            self.start(place, "")
            self.put(place, status)

    @rule(
        name=st.sampled_from(["a", "b", "c"]),
        by_group=st.booleans(),
        statuses=st.sampled_from([(), (), (), ("succeeded",), ("failed", "cancelled")]),
        queues=st.sampled_from([(), (), (), ("gpu",), ("", "cpu")]),
        begins=st.sampled_from([True, True, False]),
        limits=st.tuples(LIMITS, MAX_DELIVERIES, LAGS, st.booleans()),
    )
    def create_consumer(
        self, name: str, by_group: bool, statuses: Any, queues: Any, begins: bool, limits: Any
    ) -> None:
        self.enqueued += 1
        max_outstanding, max_deliveries, max_lag, delivers_stale = limits
        ack_seconds = 4 + self.enqueued * 0.0173
        model = self.model
        last = model.completions if by_group else model.finishes
        made = Consumer(
            *(by_group, statuses, queues, 0 if begins else last, ack_seconds),
            *(max_lag, delivers_stale, max_outstanding, max_deliveries),
        )
        record = consumer_pb2.Consumer(
            name=name,
            unit=consumer_pb2.CONSUMER_UNIT_GROUP if by_group else 0,  # type: ignore[arg-type]
            filter={
                "statuses": [RolloutStatus.Value(f"ROLLOUT_STATUS_{s.upper()}") for s in statuses],
                "queues": queues,
            },
            after_completion_number=0 if begins else None,
            max_lag=max_lag,
            on_stale=1 + delivers_stale,  # type: ignore[arg-type]
            max_outstanding=max_outstanding,
            max_deliveries=max_deliveries,
        )
        record.ack_deadline.FromNanoseconds(round(ack_seconds * 1e9))

        def event() -> None:
            if name in model.consumers:
                raise Refused
            model.consumers[name] = made
            self.given[name] = []

        request = consumer_pb2.CreateConsumerRequest(consumer=record)
        reply, _ = self.both("create_consumer", request, event)
        if reply is not None:
            again, _ = self.both("create_consumer", request, lambda: None)
            assert again == reply

    @precondition(lambda self: self.has_consumers() and self.turn % 5 == 0)
    @rule(pick=PICK)
    def delete_consumer(self, pick: int) -> None:
        name, _ = self.consumer(pick)
        request = consumer_pb2.DeleteConsumerRequest(name=name)
        self.both("delete_consumer", request, lambda: self.model.consumers.pop(name))

    @precondition(has_consumers)
    @rule(pick=PICK, limits=st.tuples(LIMITS, MAX_DELIVERIES, LAGS))
    def update_consumer(self, pick: int, limits: Any) -> None:
        name, consumer = self.consumer(pick)
        paths = ["max_outstanding", "max_deliveries", "max_lag"]
        record = consumer_pb2.Consumer(name=name)
        record.max_outstanding, record.max_deliveries, max_lag = limits
        if max_lag is not None:
            record.max_lag = max_lag
        request = consumer_pb2.UpdateConsumerRequest(consumer=record, update_mask={"paths": paths})

        def event() -> None:
            redelivered = consumer.in_state(self.model, "redelivery")
            consumer.max_outstanding, consumer.max_deliveries, consumer.max_lag = limits
            consumer.set_released_aside(self.model, redelivered)

        self.both("update_consumer", request, event)
        self._learn_ids(name, consumer)

    @precondition(has_consumers)
    @rule(pick=PICK)
    def pull_all(self, pick: int) -> None:
        self.pull(pick, 100)

    @precondition(has_consumers)
    @rule(pick=PICK, published=st.integers(0, 2), late=st.booleans())
    def train(self, pick: int, published: int, late: bool) -> None:
        """Publish, pull all, and acknowledge some of it, or pull it again after its deadline."""
        for _ in range(published):
            self.publish("a")
        self.pull(pick, 100)
        if late:
            self.pass_time(15.0)
            self.pull(pick, 2)
        self.acknowledge(pick, [0, 1], "consumed" if pick % 3 else "released")

    @precondition(has_consumers)
    @rule(pick=PICK, most=st.integers(1, 4))
    def pull(self, pick: int, most: int) -> None:
        name, consumer = self.consumer(pick)
        request = consumer_pb2.PullFinishedRequest(consumer=name, max_items=most)
        reply, _ = self.both("pull_finished", request, lambda: None)
        shown = self.loop.run_until_complete(self._shown(name))
        left = {d.completion_number for d in self.loop.run_until_complete(self._listed(name))}
        cursor = shown.after_completion_number
        consumer.pull(self.model, most, reply.deliveries, cursor, left)
        for delivery in reply.deliveries:
            self.given[name].append(delivery.delivery_id)
            if not consumer.by_group:
                assert delivery.rollout.rollout_id == delivery.item_id
                continue
            members = [n for n, r in self.model.rollouts.items() if r.group == delivery.item_id]
            assert delivery.group.group_id == delivery.item_id
            assert [member.rollout_id for member in delivery.members] == members

    @precondition(has_consumers)
    @rule(
        pick=PICK,
        places=st.lists(st.integers(0, 5), min_size=1, max_size=3),
        outcome=st.sampled_from(["consumed", "consumed", "dropped", "released"]),
    )
    def acknowledge(self, pick: int, places: list[int], outcome: str) -> None:
        name, consumer = self.consumer(pick)
        given = self.given[name]
        if not given:
            return
        ids = [given[-1 - place % len(given)] for place in places]
        value = consumer_pb2.AckOutcome.Value(f"ACK_OUTCOME_{outcome.upper()}")
        request = consumer_pb2.AcknowledgeRequest(consumer=name, delivery_ids=ids, outcome=value)

        def event() -> None:
            consumer.acknowledge(self.model, ids, outcome)

        self.both("acknowledge", request, event)
        self._learn_ids(name, consumer)

    def _learn_ids(self, name: str, consumer: Consumer) -> None:
        """Record the ids that the store has assigned to deliveries that are set aside."""
        given = self.given[name]
        for delivery in self.loop.run_until_complete(self._listed(name)):
            item = consumer.items[delivery.completion_number]
            if not item.delivery_id:
                assert delivery.delivery_id not in given
                item.delivery_id = delivery.delivery_id
                given.append(item.delivery_id)

    # Comparing

    async def _shown(self, name: str) -> Any:
        request = consumer_pb2.GetConsumerRequest(name=name)
        return (await self.store.get_consumer(request)).consumer

    async def _listed(self, name: str) -> Any:
        request = consumer_pb2.ListDeliveriesRequest(consumer=name)
        return (await self.store.list_deliveries(request)).deliveries

    async def check_consumers(self) -> None:
        model = self.model
        reply = await self.store.list_consumers(consumer_pb2.ListConsumersRequest())
        assert [record.name for record in reply.consumers] == sorted(model.consumers)
        for record in reply.consumers:
            consumer = model.consumers[record.name]
            assert record == await self._shown(record.name)
            items, waiting = consumer.delivered(model), consumer.waiting(model)
            states = {n: consumer.state(model, item) for n, item in items.items()}
            shown = {d.completion_number: d for d in await self._listed(record.name)}
            assert {n: (d.delivery_id, d.delivery_count) for n, d in shown.items()} == {
                n: (item.delivery_id, item.count) for n, item in items.items()
            }
            named = {n: consumer_pb2.DeliveryState.Name(d.state) for n, d in shown.items()}
            assert named == {n: f"DELIVERY_STATE_{s.upper()}" for n, s in states.items()}
            assert record.after_completion_number == consumer.cursor
            assert record.backlog_count == len(waiting), record
            assert record.outstanding_count == consumer.outstanding(model), record
            assert record.delivered_count == list(states.values()).count("delivered"), record
            assert record.redelivery_count == len(consumer.in_state(model, "redelivery")), record
            assert record.set_aside_count == len(consumer.in_state(model, "set_aside")), record
            counted = (record.consumed_count, record.dropped_count, record.skipped_count)
            assert counted == (consumer.consumed, consumer.dropped, consumer.skipped), record
            oldest = waiting or consumer.in_state(model, "delivered", "redelivery")
            assert record.HasField("oldest_item_time") == bool(oldest), record
