"""Consumers, in the asyncio client: finished rollouts and groups, each until it is acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import consumers as calls
from lightningstore.client.values import (
    UNSET,
    AckOutcome,
    Consumer,
    ConsumerUnit,
    Delivery,
    DeliveryState,
    Page,
    RolloutMode,
    RolloutStatus,
    StaleAction,
    Unset,
)

#: Seconds for which the server holds one pull of `consume`.
POLL_SECONDS = 20.0
#: Seconds between a pull of `consume` that found nothing and the next one.
PAUSE_SECONDS = 0.1


class AsyncConsumerCalls(AsyncCaller):
    """The calls on consumers. Enums can also be passed as their words."""

    async def create_consumer(
        self,
        name: str,
        *,
        unit: ConsumerUnit | str | int | None = None,
        statuses: Iterable[RolloutStatus | str | int] = (),
        modes: Iterable[RolloutMode | str | int | None] = (),
        queues: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        after_completion_number: int | None = None,
        ack_deadline: float | None = None,
        max_lag: int | None = None,
        on_stale: StaleAction | str | int | None = None,
        max_outstanding: int | None = None,
        max_deliveries: int | None = None,
    ) -> Consumer:
        """Create a consumer: a durable subscription to finished rollouts or groups.

        Creating it again with the same arguments returns the consumer, whatever it has delivered since. So a trainer
        can call this whenever it starts.

        Args:
            name: Name of the consumer, named like a namespace.
            unit: What is delivered: "rollout" or "group". None: rollouts.
            statuses: Only rollouts that finished with one of these statuses. Empty filters are ignored. A group is
                delivered if at least one of its members matches.
            modes: Only rollouts with one of these modes; None stands for rollouts without a mode.
            queues: Only rollouts of one of these task queues; "" is the default queue.
            labels: Only rollouts that have all of these labels with these values.
            after_completion_number: Deliver what has a greater completion number. 0: from the beginning. None: what
                finishes from now on.
            ack_deadline: Seconds to acknowledge a delivery, at most 7 days. None: 10 minutes.
            max_lag: Highest lag of an item that is not stale. None: nothing is stale.
            on_stale: What happens to stale items: "skip" or "deliver". None: "skip".
            max_outstanding: Maximum number of rollouts that are claimed, or finished and not acknowledged. At the
                limit, claims wait. None: no limit.
            max_deliveries: Number of deliveries after which an item is set aside. None: no limit.

        Returns:
            The consumer.

        Raises:
            AlreadyExistsError: A consumer of this name was created with other arguments.
            OutOfRangeError: The completion number is greater than the last one.
            ResourceExhaustedError: The namespace has 100 consumers.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            TypeError: `queues` is a single string.
            ValueError: A status, a mode, the unit or the action is unknown.

        Example:
            await store.create_consumer("trainer", unit="group", max_outstanding=512, max_lag=4)
        """
        settings = {
            "ack_deadline": ack_deadline,
            "max_lag": max_lag,
            "on_stale": on_stale,
            "max_outstanding": max_outstanding,
            "max_deliveries": max_deliveries,
        }
        return await self._send(
            calls.create_consumer(
                *(name, unit, statuses, modes, queues, labels, after_completion_number, settings)
            )
        )

    async def get_consumer(self, name: str) -> Consumer:
        """Get one consumer with its counts.

        Args:
            name: Name of the consumer.

        Returns:
            The consumer.

        Raises:
            NotFoundError: The consumer does not exist.
            InvalidArgumentError: The name is empty.
        """
        return await self._send(calls.get_consumer(name))

    async def list_consumers(self, *, page_size: int = 0, page_token: str = "") -> Page[Consumer]:
        """List one page of the consumers, by name. A namespace has at most 100.

        Args:
            page_size: Maximum consumers in the page. 0: 100.
            page_token: `next_page_token` of the previous page.

        Returns:
            The page.

        Raises:
            InvalidArgumentError: The page token is invalid.
        """
        return await self._send(calls.list_consumers(page_size, page_token))

    async def update_consumer(
        self,
        name: str,
        *,
        ack_deadline: float | Unset | None = UNSET,
        max_lag: int | Unset | None = UNSET,
        on_stale: StaleAction | str | int | Unset | None = UNSET,
        max_outstanding: int | Unset | None = UNSET,
        max_deliveries: int | Unset | None = UNSET,
    ) -> Consumer:
        """Change settings of a consumer. Deliveries keep their deadlines.

        Args:
            name: Name of the consumer.
            ack_deadline: Seconds to acknowledge a delivery. None: 10 minutes.
            max_lag: Highest lag of an item that is not stale. None: nothing is stale.
            on_stale: What happens to stale items: "skip" or "deliver". None: "skip".
            max_outstanding: Maximum number of outstanding rollouts. None: no limit.
            max_deliveries: Number of deliveries after which an item is set aside. None: no limit.

        Returns:
            The changed consumer.

        Raises:
            NotFoundError: The consumer does not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            ValueError: The action is unknown.
        """
        settings = {
            "ack_deadline": ack_deadline,
            "max_lag": max_lag,
            "on_stale": on_stale,
            "max_outstanding": max_outstanding,
            "max_deliveries": max_deliveries,
        }
        return await self._send(calls.update_consumer(name, settings))

    async def delete_consumer(self, name: str, *, allow_missing: bool = False) -> None:
        """Delete a consumer with its deliveries. Calls of `pull_finished` that wait for it fail.

        Args:
            name: Name of the consumer.
            allow_missing: If true, deleting a consumer that does not exist succeeds.

        Raises:
            NotFoundError: The consumer does not exist, and `allow_missing` is false.
            InvalidArgumentError: The name is empty.
        """
        await self._send(calls.delete_consumer(name, allow_missing=allow_missing))

    async def pull_finished(
        self,
        consumer: str,
        max_items: int = 1,
        *,
        min_items: int = 0,
        wait: float = 0.0,
        partial_ok: bool = False,
        request_id: str | None = None,
    ) -> list[Delivery]:
        """Pull finished rollouts or groups of a consumer: redeliveries first, then new ones, in completion order.

        Acknowledge each delivery before its deadline; after it, the item is delivered again. A response that is lost
        loses no delivery: the retry has the same request id and gets the same deliveries.

        Args:
            consumer: Name of the consumer.
            max_items: Maximum number of items, at most 1,000. There are fewer if they would not fit into a message.
            min_items: Number of items to wait for. 0: one.
            wait: Seconds to wait for them. The deadline of the call is `wait` plus the timeout of the client.
            partial_ok: Whether to return fewer than `min_items` when the wait is over, rather than none.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The deliveries. Empty if the wait ended without items.

        Raises:
            NotFoundError: The consumer does not exist, or was deleted during the wait.
            InvalidArgumentError: A number or the wait is negative, or `min_items` is greater than `max_items`.
            ResourceExhaustedError: `max_items` is greater than 1,000.

        Example:
            await store.create_consumer("archive", after_completion_number=0)
            for delivery in await store.pull_finished("archive", 8, wait=0.1):
                print(delivery.rollout, delivery.lag)
                await store.acknowledge("archive", delivery)
        """
        return await self._send(
            calls.pull_finished(
                consumer, max_items, min_items, wait, request_id, partial_ok=partial_ok
            )
        )

    async def consume(
        self, consumer: str, max_items: int = 1, *, min_items: int = 0
    ) -> AsyncIterator[list[Delivery]]:
        """Iterate over what `pull_finished` takes, pull after pull, without end. The caller acknowledges the deliveries.

        Each step is one pull, which begins when the caller asks for it: nothing is taken ahead, so no deadline runs
        unseen. The iteration resumes after a broken connection, and loses nothing.

        Items are delivered at least once: one that is not acknowledged before its deadline comes again, here or to
        another caller, with a higher `delivery_count`.

        Args:
            consumer: Name of the consumer.
            max_items: Maximum number of items of a pull, at most 1,000.
            min_items: Number of items to wait for, each time. 0: one.

        Yields:
            The deliveries of a pull, at least one.

        Raises:
            NotFoundError: The consumer does not exist, or was deleted.
            InvalidArgumentError: A number is negative, or `min_items` is greater than `max_items`.
            ResourceExhaustedError: `max_items` is greater than 1,000.
            UnavailableError: The server could not be reached for the time of a pull, 20 seconds, and the timeout of the
                client.

        Example:
            await store.create_consumer("judge", after_completion_number=0)
            async for deliveries in store.consume("judge", 8):
                print([delivery.rollout for delivery in deliveries])
                await store.acknowledge("judge", deliveries)
                judge = await store.get_consumer("judge")
                if judge.backlog_count == 0:
                    break
        """
        while True:
            call = calls.pull_finished(
                consumer, max_items, min_items, POLL_SECONDS, None, partial_ok=False
            )
            deliveries = await self._send(call)
            if deliveries:
                yield deliveries
            else:
                await asyncio.sleep(
                    PAUSE_SECONDS
                )  # a server that is shutting down answers so at once

    async def acknowledge(
        self,
        consumer: str,
        deliveries: Iterable[Delivery | str] | Delivery,
        outcome: AckOutcome | str | int = "consumed",
        *,
        note: str = "",
        request_id: str | None = None,
    ) -> None:
        """End deliveries, all of them or none.

        Args:
            consumer: Name of the consumer.
            deliveries: The deliveries, or their ids; at most 1,000.
            outcome: What becomes of the items: "consumed", "released" to deliver them again at once, or "dropped" if
                they are unusable.
            note: Why, for people. At most 256 characters.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Raises:
            FailedPreconditionError: A delivery has ended before: its deadline passed and the item was delivered again,
                or it was acknowledged. Nothing is changed; the metadata of the error names such deliveries.
            NotFoundError: The consumer does not exist.
            InvalidArgumentError: The note is too long.
            TypeError: `deliveries` is a single string.
            ValueError: The outcome is unknown.
        """
        await self._send(calls.acknowledge(consumer, deliveries, outcome, note, request_id))

    async def modify_ack_deadline(
        self, consumer: str, deliveries: Iterable[Delivery | str] | Delivery, ack_deadline: float
    ) -> datetime:
        """Move the deadlines of deliveries.

        Args:
            consumer: Name of the consumer.
            deliveries: The deliveries, or their ids; at most 1,000.
            ack_deadline: Seconds from now to the new deadline, at most 7 days.

        Returns:
            The new deadline, in UTC.

        Raises:
            FailedPreconditionError: A delivery has ended. Nothing is changed.
            NotFoundError: The consumer does not exist.
            InvalidArgumentError: The time is not positive.
            TypeError: `deliveries` is a single string.
        """
        return await self._send(calls.modify_ack_deadline(consumer, deliveries, ack_deadline))

    async def list_deliveries(
        self,
        consumer: str,
        *,
        states: Iterable[DeliveryState | str | int] = (),
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Delivery]:
        """List one page of the items of a consumer that were delivered and are not acknowledged.

        Args:
            consumer: Name of the consumer.
            states: Only items in one of these states. Empty: all.
            page_size: Maximum deliveries in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same states.

        Returns:
            The page: the latest delivery of each item, by completion number, without the rollouts and groups.

        Raises:
            NotFoundError: The consumer does not exist.
            InvalidArgumentError: The page token is invalid.
            ValueError: A state is unknown.
        """
        return await self._send(calls.list_deliveries(consumer, states, page_size, page_token))

    async def iter_deliveries(
        self,
        consumer: str,
        *,
        states: Iterable[DeliveryState | str | int] = (),
        page_size: int = 0,
    ) -> AsyncIterator[Delivery]:
        """Iterate over all deliveries that `list_deliveries` would list, page after page.

        Args:
            consumer: Name of the consumer.
            states: Only items in one of these states. Empty: all.
            page_size: Maximum deliveries requested at a time. 0: 100.

        Yields:
            The deliveries.

        Raises:
            NotFoundError: The consumer does not exist.
            ValueError: A state is unknown.
        """
        call = calls.list_deliveries(consumer, states, page_size)
        while True:
            page = await self._send(call)
            for delivery in page:
                yield delivery
            if not page.next_page_token:
                return
            call = call.for_page(page.next_page_token)
