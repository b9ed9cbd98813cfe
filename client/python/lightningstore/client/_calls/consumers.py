"""Requests about consumers and deliveries, and the conversion of their responses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from lightningstore.client._calls.call import Call
from lightningstore.client._calls.control import or_new
from lightningstore.client._values import convert
from lightningstore.client._values.consumers import (
    ACK_OUTCOME,
    CONSUMER_UNIT,
    DELIVERY_STATE,
    STALE_ACTION,
    Consumer,
    Delivery,
)
from lightningstore.client._values.enums import UNSET
from lightningstore.client._values.rollouts import ROLLOUT_MODE, ROLLOUT_STATUS
from lightningstore.client._values.text import names_fields
from lightningstore.client._values.view import Page
from lightningstore.v1 import consumer_pb2

#: Deliveries, or their ids.
Deliveries = Iterable[Delivery | str]


def _consumer(answer: Any) -> Consumer:
    return Consumer(answer.consumer)


@names_fields
def create_consumer(
    name: str,
    unit: str | int | None,
    statuses: Iterable[str | int],
    modes: Iterable[str | int | None],
    queues: Iterable[str],
    labels: Mapping[str, str] | None,
    after_completion_number: int | None,
    settings: Mapping[str, Any],
) -> Call[Consumer]:
    """CreateConsumer. `settings`: values by name, None for those that are left out."""
    request = consumer_pb2.CreateConsumerRequest()
    record = request.consumer
    record.name = name
    if unit is not None:
        record.unit = convert.to_number(CONSUMER_UNIT, unit)  # type: ignore[assignment]
    chosen = consumer_pb2.ConsumerFilter(
        statuses=convert.to_numbers(ROLLOUT_STATUS, statuses),
        modes=convert.to_numbers(ROLLOUT_MODE, modes),
        queues=convert.ids(queues, "queues"),
        labels=convert.labels(labels),
    )
    if chosen.ListFields():
        record.filter.CopyFrom(chosen)
    if after_completion_number is not None:
        record.after_completion_number = after_completion_number
    for field, value in settings.items():
        if value is not None:
            _SETTERS[field](record, value)
    return Call("CreateConsumer", request, _consumer)


@names_fields
def get_consumer(name: str) -> Call[Consumer]:
    """GetConsumer."""
    return Call("GetConsumer", consumer_pb2.GetConsumerRequest(name=name), _consumer)


@names_fields
def list_consumers(page_size: int = 0, page_token: str = "") -> Call[Page[Consumer]]:
    """ListConsumers."""
    request = consumer_pb2.ListConsumersRequest(page_size=page_size, page_token=page_token)
    return Call(
        "ListConsumers",
        request,
        lambda answer: Page([Consumer(each) for each in answer.consumers], answer.next_page_token),
    )


@names_fields
def update_consumer(name: str, settings: Mapping[str, Any]) -> Call[Consumer]:
    """UpdateConsumer. `settings`: values by name, UNSET for unchanged ones, None for the default."""
    request = consumer_pb2.UpdateConsumerRequest()
    request.consumer.name = name
    for field, value in settings.items():
        if value is UNSET:
            continue
        request.update_mask.paths.append(field)
        if value is not None:
            _SETTERS[field](request.consumer, value)
    return Call("UpdateConsumer", request, _consumer)


def _set_ack_deadline(record: consumer_pb2.Consumer, value: float) -> None:
    record.ack_deadline.CopyFrom(convert.to_duration(value))


def _set_on_stale(record: consumer_pb2.Consumer, value: str | int) -> None:
    record.on_stale = convert.to_number(STALE_ACTION, value)  # type: ignore[assignment]


def _plainly(field: str) -> Callable[[consumer_pb2.Consumer, Any], None]:
    return lambda record, value: setattr(record, field, value)


_SETTERS: dict[str, Callable[[consumer_pb2.Consumer, Any], None]] = {
    "ack_deadline": _set_ack_deadline,
    "max_lag": _plainly("max_lag"),
    "on_stale": _set_on_stale,
    "max_outstanding": _plainly("max_outstanding"),
    "max_deliveries": _plainly("max_deliveries"),
}


@names_fields
def delete_consumer(name: str, *, allow_missing: bool) -> Call[None]:
    """DeleteConsumer."""
    request = consumer_pb2.DeleteConsumerRequest(name=name, allow_missing=allow_missing)
    return Call("DeleteConsumer", request, lambda _: None)


@names_fields
def pull_finished(
    consumer: str,
    max_items: int,
    min_items: int,
    wait: float,
    request_id: str | None,
    *,
    partial_ok: bool,
) -> Call[list[Delivery]]:
    """PullFinished."""
    request = consumer_pb2.PullFinishedRequest(
        consumer=consumer,
        max_items=max_items,
        min_items=min_items,
        partial_ok=partial_ok,
        request_id=or_new(request_id),
    )
    if wait:
        request.wait.CopyFrom(convert.to_duration(wait))
    return Call(
        "PullFinished",
        request,
        lambda answer: [Delivery(each) for each in answer.deliveries],
        wait=max(wait, 0.0),
    )


@names_fields
def acknowledge(
    consumer: str,
    deliveries: Deliveries | Delivery,
    outcome: str | int,
    note: str,
    request_id: str | None,
) -> Call[None]:
    """Acknowledge."""
    request = consumer_pb2.AcknowledgeRequest(
        consumer=consumer,
        delivery_ids=_ids(deliveries),
        outcome=convert.to_number(ACK_OUTCOME, outcome),  # type: ignore[arg-type]
        note=note,
        request_id=or_new(request_id),
    )
    return Call("Acknowledge", request, lambda _: None)


@names_fields
def modify_ack_deadline(
    consumer: str, deliveries: Deliveries | Delivery, ack_deadline: float
) -> Call[datetime]:
    """ModifyAckDeadline."""
    request = consumer_pb2.ModifyAckDeadlineRequest(
        consumer=consumer,
        delivery_ids=_ids(deliveries),
        ack_deadline=convert.to_duration(ack_deadline),
    )
    return Call(
        "ModifyAckDeadline",
        request,
        lambda answer: convert.from_timestamp(answer.ack_deadline_time),
    )


def _ids(deliveries: Deliveries | Delivery) -> list[str]:
    if isinstance(deliveries, Delivery):
        return [deliveries.delivery_id]
    if isinstance(deliveries, str):
        raise TypeError("deliveries must be several, or one Delivery, not a single string")
    return [each.delivery_id if isinstance(each, Delivery) else each for each in deliveries]


@names_fields
def list_deliveries(
    consumer: str, states: Iterable[str | int], page_size: int = 0, page_token: str = ""
) -> Call[Page[Delivery]]:
    """ListDeliveries."""
    request = consumer_pb2.ListDeliveriesRequest(
        consumer=consumer,
        states=convert.to_numbers(DELIVERY_STATE, states),
        page_size=page_size,
        page_token=page_token,
    )
    return Call(
        "ListDeliveries",
        request,
        lambda answer: Page([Delivery(each) for each in answer.deliveries], answer.next_page_token),
    )
