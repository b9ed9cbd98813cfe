"""Consumers, and their deliveries."""

from __future__ import annotations

from datetime import datetime

from lightningstore.client._values import convert
from lightningstore.client._values.enums import (
    ConsumerUnit,
    DeliveryState,
    RolloutMode,
    RolloutStatus,
    StaleAction,
)
from lightningstore.client._values.groups import Group
from lightningstore.client._values.rollouts import ROLLOUT_MODE, ROLLOUT_STATUS, Rollout
from lightningstore.client._values.view import View
from lightningstore.v1 import consumer_pb2

CONSUMER_UNIT = consumer_pb2.ConsumerUnit.DESCRIPTOR
STALE_ACTION = consumer_pb2.StaleAction.DESCRIPTOR
DELIVERY_STATE = consumer_pb2.DeliveryState.DESCRIPTOR
ACK_OUTCOME = consumer_pb2.AckOutcome.DESCRIPTOR


class Consumer(View[consumer_pb2.Consumer]):
    """A durable subscription to finished rollouts or groups. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("name", "unit", "backlog_count", "outstanding_count")

    @property
    def name(self) -> str:
        """Name of the consumer."""
        return self.message.name

    @property
    def unit(self) -> ConsumerUnit:
        """What is delivered."""
        return convert.from_number(ConsumerUnit, CONSUMER_UNIT, self.message.unit)

    @property
    def statuses(self) -> list[RolloutStatus]:
        """Only rollouts that finished with one of these statuses. Empty: all."""
        return [
            convert.from_number(RolloutStatus, ROLLOUT_STATUS, number)
            for number in self.message.filter.statuses
        ]

    @property
    def modes(self) -> list[RolloutMode | None]:
        """Only rollouts with one of these modes; None stands for rollouts without a mode. Empty: all."""
        return [
            convert.from_number(RolloutMode, ROLLOUT_MODE, number) if number else None
            for number in self.message.filter.modes
        ]

    @property
    def queues(self) -> list[str]:
        """Only rollouts of one of these task queues. Empty: all."""
        return list(self.message.filter.queues)

    @property
    def labels(self) -> dict[str, str]:
        """Only rollouts with all of these labels."""
        return dict(self.message.filter.labels)

    @property
    def after_completion_number(self) -> int:
        """The last completion number that is not delivered any more for the first time."""
        return self.message.after_completion_number

    @property
    def ack_deadline(self) -> float:
        """Seconds to acknowledge a delivery."""
        return convert.from_duration(self.message.ack_deadline)

    @property
    def max_lag(self) -> int | None:
        """Highest lag of an item that is not stale. None: nothing is stale."""
        return self.message.max_lag if self.message.HasField("max_lag") else None

    @property
    def on_stale(self) -> StaleAction:
        """What happens to stale items."""
        return convert.from_number(StaleAction, STALE_ACTION, self.message.on_stale)

    @property
    def max_outstanding(self) -> int:
        """Maximum number of outstanding rollouts, at which claims wait. 0: no limit."""
        return self.message.max_outstanding

    @property
    def max_deliveries(self) -> int:
        """Number of deliveries after which an item is set aside. 0: no limit."""
        return self.message.max_deliveries

    @property
    def create_time(self) -> datetime | None:
        """Time at which it was created, in UTC."""
        return self._time("create_time")

    @property
    def backlog_count(self) -> int:
        """Items that wait for their first delivery."""
        return self.message.backlog_count

    @property
    def outstanding_count(self) -> int:
        """Rollouts that are claimed, or finished and not acknowledged."""
        return self.message.outstanding_count

    @property
    def delivered_count(self) -> int:
        """Deliveries whose deadline runs."""
        return self.message.delivered_count

    @property
    def redelivery_count(self) -> int:
        """Items that wait to be delivered again."""
        return self.message.redelivery_count

    @property
    def set_aside_count(self) -> int:
        """Items that are set aside."""
        return self.message.set_aside_count

    @property
    def consumed_count(self) -> int:
        """Items that were consumed so far."""
        return self.message.consumed_count

    @property
    def dropped_count(self) -> int:
        """Items that were dropped so far."""
        return self.message.dropped_count

    @property
    def skipped_count(self) -> int:
        """Stale items that were skipped so far."""
        return self.message.skipped_count

    @property
    def oldest_item_time(self) -> datetime | None:
        """Time at which the oldest item finished that is not acknowledged, in UTC. None if there is none."""
        return self._time("oldest_item_time")


class Delivery(View[consumer_pb2.Delivery]):
    """One delivery of an item of a consumer. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("delivery_id", "item_id", "state", "delivery_count")

    @property
    def delivery_id(self) -> str:
        """Id of this delivery, which `acknowledge` takes."""
        return self.message.delivery_id

    @property
    def item_id(self) -> str:
        """Id of the rollout or of the group."""
        return self.message.item_id

    @property
    def completion_number(self) -> int:
        """Completion number of the rollout or of the group."""
        return self.message.completion_number

    @property
    def rollout(self) -> Rollout | None:
        """The rollout, with its latest attempt. None for a group, and in `list_deliveries`."""
        return Rollout(self.message.rollout) if self.message.HasField("rollout") else None

    @property
    def group(self) -> Group | None:
        """The group. None for a rollout, and in `list_deliveries`."""
        return Group(self.message.group) if self.message.HasField("group") else None

    @property
    def members(self) -> list[Rollout]:
        """The members of the group with their latest attempts. Empty for a rollout."""
        return [Rollout(message) for message in self.message.members]

    @property
    def lag(self) -> int:
        """How many publications of resources the item was behind when it was pulled."""
        return self.message.lag

    @property
    def delivery_count(self) -> int:
        """Number of deliveries of the item, this one included."""
        return self.message.delivery_count

    @property
    def ack_deadline_time(self) -> datetime | None:
        """Time until which it must be acknowledged, in UTC. None if its deadline does not run."""
        return self._time("ack_deadline_time")

    @property
    def state(self) -> DeliveryState:
        """State of the item."""
        return convert.from_number(DeliveryState, DELIVERY_STATE, self.message.state)

    @property
    def note(self) -> str:
        """Note of the acknowledgement that released the item. May be empty."""
        return self.message.note
