"""A consumer of a namespace that several servers share: what pullers were answered, and whether a server agrees.

No deadline of a delivery passes within a run, so an item that is delivered twice is an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Literal

from lightningstore.client import AsyncLightningStore, Delivery

#: Longer than any run.
ACK_SECONDS = 24 * 3600.0
AT_ONCE = 4


class ClusterConsumer:
    """Everything that the pullers of one consumer were answered. Its items are rollouts, or groups."""

    def __init__(self, name: str, unit: Literal["rollout", "group"]) -> None:
        self.name, self._unit = name, unit
        #: Ids of deliveries by the completion numbers of their items.
        self.delivered: dict[int, str] = {}
        #: Numbers whose acknowledgement was answered, and those where it may have had its effect.
        self.trained: set[int] = set()
        self.perhaps: set[int] = set()

    async def create(self, store: AsyncLightningStore) -> None:
        """Create the consumer of all that finishes. May be repeated."""
        await store.create_consumer(
            self.name, unit=self._unit, after_completion_number=0, ack_deadline=ACK_SECONDS
        )

    async def step(
        self,
        pick: Callable[[], AsyncLightningStore],
        answer: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]],
    ) -> None:
        """Pull some items over one server and acknowledge them over another."""
        found: list[Delivery] = await answer(pick().pull_finished(self.name, AT_ONCE, wait=0.2))
        for delivery in found:
            self._note(delivery)
        if not found:
            return
        numbers = {delivery.completion_number for delivery in found}
        self.perhaps |= numbers
        await answer(pick().acknowledge(self.name, found))
        assert not numbers & self.trained, "acknowledged twice"
        self.perhaps -= numbers
        self.trained |= numbers

    def _note(self, delivery: Delivery) -> None:
        number = delivery.completion_number
        assert delivery.delivery_count == 1, f"delivered again before its deadline: {delivery}"
        assert number not in self.delivered, f"at two pullers: {delivery}"
        self.delivered[number] = delivery.delivery_id

    async def check(self, store: AsyncLightningStore, finished: set[int]) -> None:
        """Deliver what is left, and compare: each finished item was acknowledged, or its delivery is listed."""
        while found := await store.pull_finished(self.name, 100):
            for delivery in found:
                self._note(delivery)
        listed = {
            d.completion_number: d.delivery_id async for d in store.iter_deliveries(self.name)
        }
        # An answer that never came has a delivery that no puller knows.
        unknown = listed.keys() - self.delivered.keys()
        assert self.delivered.keys() | unknown == finished, "finished items were not delivered"
        assert not self.trained & listed.keys(), "acknowledged, and delivered again"
        for number in self.delivered.keys() - self.trained - self.perhaps:
            assert listed[number] == self.delivered[number], "a delivery was lost or replaced"
        acknowledged = finished - listed.keys()
        assert self.trained <= acknowledged <= self.trained | self.perhaps, "lost deliveries"
        consumer = await store.get_consumer(self.name)
        counts = (consumer.consumed_count, consumer.delivered_count, consumer.backlog_count)
        assert counts == (len(acknowledged), len(listed), 0), f"miscounted: {consumer}"
