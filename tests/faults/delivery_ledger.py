"""What pullers and acknowledgers were answered, and whether a store agrees. The part of the ledger about consumers.

A delivery's place among those of its item is its delivery count. So an item is acknowledged once if no answer
shows a delivery with a higher count than the one that was acknowledged.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2, status_pb2
from lightningstore.v1 import consumer_pb2, group_pb2

CALL_SECONDS = 10
#: Seconds to acknowledge, by consumer: some deadlines pass while the server is down, some after it.
ACK_SECONDS = {"trainer": 3.0, "judge": 0.7}
UNITS = {
    "trainer": consumer_pb2.CONSUMER_UNIT_ROLLOUT,
    "judge": consumer_pb2.CONSUMER_UNIT_GROUP,
}
CONSUMED, RELEASED, DROPPED = 1, 2, 3


class Held(NamedTuple):
    """A delivery that was answered. `begin` and `end`: of the call, in monotonic seconds."""

    consumer: str
    number: int
    count: int
    delivery_id: str
    begin: float
    end: float


class OpenPull(NamedTuple):
    """A pull that has no answer yet."""

    request: consumer_pb2.PullFinishedRequest
    begin: float


class OpenAck(NamedTuple):
    """An acknowledgement that has no answer yet."""

    request: consumer_pb2.AcknowledgeRequest
    deliveries: list[Held]


class Deliveries:
    """All deliveries that some clients were answered."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        #: The request that each delivery was the answer to.
        self.pulls: dict[str, str] = {}
        #: Deliveries of each item by their count; and the counts and outcomes of those that were acknowledged.
        self.items: dict[tuple[str, int], dict[int, Held]] = {}
        self.acknowledged: dict[tuple[str, int], tuple[int, int]] = {}
        #: Deliveries that may have been released, and those that had ended when they were acknowledged.
        self.released: set[str] = set()
        self.ended: list[Held] = []
        self.open_pulls: list[OpenPull] = []
        self.open_acks: list[OpenAck] = []
        #: Deliveries whose holders ended with the server.
        self.left: list[Held] = []
        #: Ids of complete groups by their numbers.
        self.groups: dict[int, str] = {}

    def __str__(self) -> str:
        """Return how much was delivered and acknowledged."""
        again = sum(len(counts) - 1 for counts in self.items.values())
        return (
            f"{len(self.pulls)} deliveries, {again} of them again, {len(self.acknowledged)} "
            f"items acknowledged, {len(self.groups)} groups complete"
        )

    async def create(self, stub: Any) -> None:
        """Create the consumers, from the first completion on. May be repeated."""
        for name, seconds in ACK_SECONDS.items():
            consumer = consumer_pb2.Consumer(name=name, unit=UNITS[name], after_completion_number=0)
            consumer.ack_deadline.FromNanoseconds(round(seconds * 1e9))
            request = consumer_pb2.CreateConsumerRequest(consumer=consumer)
            await stub.CreateConsumer(request, timeout=CALL_SECONDS)

    # Working

    async def pull(self, stub: Any, mine: list[Held], name: str = "", most: int = 0) -> bool:
        """Pull some items into `mine`."""
        request = consumer_pb2.PullFinishedRequest(
            consumer=name or self.dice.choice(list(ACK_SECONDS)),
            max_items=most or self.dice.choice([1, 4, 20]),
            request_id=f"{self.dice.getrandbits(96):x}",
        )
        open_pull = OpenPull(request, time.monotonic())
        self.open_pulls.append(open_pull)
        mine += await self._pull(stub, open_pull)
        return True

    async def _pull(self, stub: Any, open_pull: OpenPull) -> list[Held]:
        request, begin = open_pull
        answer = await stub.PullFinished(request, timeout=CALL_SECONDS)
        self.open_pulls.remove(open_pull)
        end = time.monotonic()
        return [self._note(request, d, begin, end) for d in answer.deliveries]

    def _note(self, request: Any, delivery: Any, begin: float, end: float) -> Held:
        """Record a delivery. No other pull may have returned it, nor its item while its deadline runs."""
        number, count = delivery.completion_number, delivery.delivery_count
        held = Held(request.consumer, number, count, delivery.delivery_id, begin, end)
        first = self.pulls.setdefault(held.delivery_id, request.request_id)
        assert first == request.request_id, f"at two pullers: {held}"
        item = self.items.setdefault((held.consumer, number), {})
        assert item.setdefault(count, held).delivery_id == held.delivery_id, (
            f"counted twice: {held}"
        )
        for other in item.values():
            earlier, later = sorted((held, other), key=lambda each: each.count)
            if earlier.count < later.count and earlier.delivery_id not in self.released:
                least = earlier.begin + ACK_SECONDS[held.consumer]
                assert later.end >= least, f"at two pullers before its deadline: {earlier}, {later}"
        return held

    async def acknowledge(self, stub: Any, mine: list[Held]) -> bool:
        """Acknowledge some of `mine`, in one of three ways."""
        if not mine:
            return False
        name = self.dice.choice(mine).consumer
        fitting = [held for held in mine if held.consumer == name]
        chosen = self.dice.sample(fitting, min(len(fitting), self.dice.choice([1, 4, 20])))
        for held in chosen:
            mine.remove(held)
        outcome = self.dice.choice([CONSUMED] * 6 + [RELEASED, DROPPED])
        mine += await self._acknowledge(stub, self._ask(chosen, outcome))
        return True

    def _ask(self, deliveries: list[Held], outcome: int) -> OpenAck:
        request = consumer_pb2.AcknowledgeRequest(
            consumer=deliveries[0].consumer,
            delivery_ids=[held.delivery_id for held in deliveries],
            outcome=outcome,  # type: ignore[arg-type]
            request_id=f"{self.dice.getrandbits(96):x}",
        )
        if outcome == RELEASED:
            self.released.update(request.delivery_ids)
        self.open_acks.append(OpenAck(request, deliveries))
        return self.open_acks[-1]

    async def _acknowledge(self, stub: Any, ack: OpenAck) -> list[Held]:
        """Send an acknowledgement; return what goes on because another delivery has ended."""
        try:
            await stub.Acknowledge(ack.request, timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise
            self.open_acks.remove(ack)
            ended = _ended(error)
            assert set() < ended <= set(ack.request.delivery_ids)
            self.released.difference_update(ack.request.delivery_ids)
            self.ended += [held for held in ack.deliveries if held.delivery_id in ended]
            return [held for held in ack.deliveries if held.delivery_id not in ended]
        self.open_acks.remove(ack)
        if ack.request.outcome != RELEASED:
            for held in ack.deliveries:
                place = held.consumer, held.number
                assert place not in self.acknowledged, f"acknowledged twice: {held}"
                self.acknowledged[place] = held.count, ack.request.outcome
        return []

    # Asking again, and comparing

    async def settle(self, stub: Any) -> None:
        """Repeat what had no answer: it must have its effect once."""
        pulls, acks = list(self.open_pulls), list(self.open_acks)
        for again in self.dice.sample([*pulls, *acks], len(pulls) + len(acks)):
            if isinstance(again, OpenPull):
                self.left += await self._pull(stub, again)
            else:
                self.left += await self._acknowledge(stub, again)

    async def check(self, stub: Any, finishes: dict[int, str], stored: dict[str, Any]) -> None:
        """Compare all deliveries with what a store shows, which has these finished rollouts by number."""
        await self._check_groups(stub, stored)
        for name, unit in UNITS.items():
            by_group = unit == consumer_pb2.CONSUMER_UNIT_GROUP
            await self._check(stub, name, self.groups if by_group else finishes)
        for held in self.ended:
            latest = max(self.items[held.consumer, held.number])
            assert latest > held.count, f"has ended without another delivery: {held}"
        self.ended.clear()

    async def _check(self, stub: Any, name: str, finishes: dict[int, str]) -> None:
        delivered = {n: counts for (consumer, n), counts in self.items.items() if consumer == name}
        ended = {n: ack for (consumer, n), ack in self.acknowledged.items() if consumer == name}
        for number, (count, _) in ended.items():
            assert max(delivered[number]) == count, f"delivered after it was acknowledged: {number}"
        listed = await self._listed(stub, name)
        assert listed.keys() == delivered.keys() - ended.keys(), (
            "deliveries were lost, or came back"
        )
        for number, delivery in listed.items():
            latest = delivered[number][max(delivered[number])]
            named = (delivery.delivery_count, delivery.delivery_id, delivery.item_id)
            expected = (latest.count, latest.delivery_id, finishes[number])
            assert named == expected, f"another delivery: {named}, {expected}"
        request = consumer_pb2.GetConsumerRequest(name=name)
        found = (await stub.GetConsumer(request, timeout=CALL_SECONDS)).consumer
        outcomes = [outcome for _, outcome in ended.values()]
        counts = (outcomes.count(CONSUMED), outcomes.count(DROPPED), len(listed))
        waiting = found.delivered_count + found.redelivery_count
        shown = (found.consumed_count, found.dropped_count, waiting)
        assert shown == counts, f"miscounted: {found}, {counts}"
        backlog = len(finishes.keys() - delivered.keys())
        assert found.backlog_count == backlog, f"miscounted: {found}, backlog {backlog}"

    async def _listed(self, stub: Any, name: str) -> dict[int, Any]:
        listed: dict[int, Any] = {}
        request = consumer_pb2.ListDeliveriesRequest(consumer=name, page_size=1000)
        while True:
            page = await stub.ListDeliveries(request, timeout=CALL_SECONDS)
            listed |= {d.completion_number: d for d in page.deliveries}
            request.page_token = page.next_page_token
            if not request.page_token:
                return listed

    async def _check_groups(self, stub: Any, stored: dict[str, Any]) -> None:
        """Groups are whole, and complete with their last member; their completion numbers have no gaps."""
        numbers: dict[int, str] = {}
        request = group_pb2.ListGroupsRequest(page_size=1000)
        while True:
            page = await stub.ListGroups(request, timeout=CALL_SECONDS)
            for group in page.groups:
                assert group.member_count == group.size == len(group.rollout_ids), "half a group"
                finished = sum(stored[i].completion_number > 0 for i in group.rollout_ids)
                assert group.finished_count == finished, group
                assert (group.completion_number > 0) == (finished == group.size), group
                if group.completion_number:
                    assert group.completion_number not in numbers, "two groups with one number"
                    numbers[group.completion_number] = group.group_id
            request.page_token = page.next_page_token
            if not request.page_token:
                break
        assert sorted(numbers) == list(range(1, len(numbers) + 1)), "numbers of groups have gaps"
        assert self.groups.items() <= numbers.items(), "a number of a group was given twice"
        self.groups = numbers

    async def drain(self, stub: Any) -> None:
        """Pull and acknowledge whatever is left: every item comes, and once."""
        end = time.monotonic() + 3 * max(ACK_SECONDS.values()) + CALL_SECONDS
        for name in ACK_SECONDS:
            while True:
                request = consumer_pb2.GetConsumerRequest(name=name)
                found = (await stub.GetConsumer(request, timeout=CALL_SECONDS)).consumer
                if not found.backlog_count + found.delivered_count + found.redelivery_count:
                    break
                assert time.monotonic() < end, f"items that are not delivered: {found}"
                mine: list[Held] = []
                while not mine and time.monotonic() < end:
                    await self.pull(stub, mine, name, 500)
                    if not mine:
                        await asyncio.sleep(0.05)
                if mine:
                    assert not await self._acknowledge(stub, self._ask(mine, CONSUMED))


def _ended(error: grpc.aio.AioRpcError) -> set[str]:
    """Return the ids that an error names of deliveries that have ended."""
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert any(detail.Unpack(info) for detail in status.details)
    assert info.reason == "ERROR_REASON_DELIVERY_ENDED", info
    return set(info.metadata["deliveryIds"].split(","))
