"""Consumers: checks, which items match, how stale an item is, errors. Pure."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.duration_pb2 import Duration
from lightningstore.client.namespaces import name_error
from lightningstore.service.rules.checks import check_enum, check_labels, check_queue
from lightningstore.service.rules.copies import copied
from lightningstore.service.rules.errors import BatchTooLarge, FieldInvalid, StoreError, quoted
from lightningstore.service.rules.ids import new_id
from lightningstore.service.rules.statuses import FINISHED
from lightningstore.service.rules.times import NANOS, check_duration
from lightningstore.v1 import error_reason_pb2 as reasons
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.consumer_pb2 import (
    CONSUMER_UNIT_ROLLOUT,
    DELIVERY_STATE_REDELIVERY,
    DELIVERY_STATE_SET_ASIDE,
    STALE_ACTION_DELIVER,
    STALE_ACTION_SKIP,
    Consumer,
    ConsumerFilter,
    ConsumerUnit,
    DeliveryState,
    StaleAction,
)
from lightningstore.v1.rollout_pb2 import Rollout, RolloutMode, RolloutStatus

#: Maximum number of consumers of a namespace.
MAX_CONSUMERS = 100
#: Maximum number of items that one call delivers or acknowledges.
MAX_ITEMS = 1000
#: Maximum number of task queues, statuses or modes that a filter names.
MAX_NAMES = 1000
MAX_NOTE_LENGTH = 256
DEFAULT_ACK_SECONDS = 600
MAX_ACK_SECONDS = 7 * 86_400
#: Ids that an error names.
NAMED_IDS = 100

#: The fields that UpdateConsumer changes.
UPDATABLE = ("ack_deadline", "max_lag", "on_stale", "max_outstanding", "max_deliveries")
#: Fields that only the server sets.
OUTPUT_ONLY = (
    *("create_time", "backlog_count", "outstanding_count", "delivered_count", "redelivery_count"),
    *("set_aside_count", "consumed_count", "dropped_count", "skipped_count", "oldest_item_time"),
)


class ConsumerNotFound(StoreError):
    """There is no such consumer."""

    reason = reasons.ERROR_REASON_CONSUMER_NOT_FOUND

    def __init__(self, name: str) -> None:
        super().__init__(
            f"no consumer {quoted(name)}; CreateConsumer creates one, ListConsumers lists them",
            consumer=name,
        )


class ConsumerExists(StoreError):
    """A consumer with this name was created with another unit, filter, start or settings."""

    reason = reasons.ERROR_REASON_CONSUMER_EXISTS

    def __init__(self, name: str) -> None:
        super().__init__(
            f"consumer {quoted(name)} exists with another unit, filter, start or settings; "
            "UpdateConsumer changes the settings",
            consumer=name,
        )


class DeliveryEnded(StoreError):
    """Some of the deliveries have ended. Nothing was changed."""

    reason = reasons.ERROR_REASON_DELIVERY_ENDED

    def __init__(self, name: str, delivery_ids: Sequence[str]) -> None:
        """Create an error with the name of the consumer and the deliveries that have ended."""
        first = quoted(delivery_ids[0])
        others = f" and {len(delivery_ids) - 1} more" if len(delivery_ids) > 1 else ""
        super().__init__(
            f"delivery {first}{others} of consumer {quoted(name)} has ended: its item was delivered again or "
            "acknowledged; nothing was changed",
            consumer=name,
        )
        # Longer than other facts: a caller goes on with the deliveries that are left.
        self.metadata["deliveryIds"] = ",".join(delivery_ids[:NAMED_IDS])


@dataclass(frozen=True)
class Filter:
    """Which rollouts a consumer delivers. An empty set matches all."""

    statuses: frozenset[int] = frozenset()
    modes: frozenset[int] = frozenset()
    queues: frozenset[str] = frozenset()
    labels: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, message: ConsumerFilter) -> Filter:
        """Return the filter of a consumer."""
        return cls(
            frozenset(message.statuses),
            frozenset(message.modes),
            frozenset(message.queues),
            tuple(sorted(message.labels.items())),
        )

    @property
    def is_all(self) -> bool:
        """Whether every finished rollout matches."""
        return not (self.statuses or self.modes or self.queues or self.labels)

    def allows(self, rollout: Rollout) -> bool:
        """Return whether a rollout matches once it has finished with the right status."""
        if self.modes and rollout.mode not in self.modes:
            return False
        if self.queues and rollout.queue not in self.queues:
            return False
        if self.labels:
            labels = rollout.labels
            return all(labels.get(key) == value for key, value in self.labels)
        return True

    def matches(self, rollout: Rollout) -> bool:
        """Return whether a finished rollout matches."""
        return (not self.statuses or rollout.status in self.statuses) and self.allows(rollout)


def check_name(field: str, name: str) -> None:
    """Raise FieldInvalid for a name of a consumer that is missing or invalid."""
    if not name:
        raise FieldInvalid(field, "required")
    if error := name_error(name):
        raise FieldInvalid(field, error)


def check_new(consumer: Consumer) -> None:
    """Raise FieldInvalid or BatchTooLarge for a consumer that cannot be created."""
    check_name("consumer.name", consumer.name)
    for name in OUTPUT_ONLY:
        if any(descriptor.name == name for descriptor, _ in consumer.ListFields()):
            raise FieldInvalid(f"consumer.{name}", "is output only; leave it out")
    check_enum("consumer.unit", ConsumerUnit, consumer.unit, unspecified=True)
    _check_filter("consumer.filter", consumer.filter)
    if consumer.HasField("after_completion_number") and consumer.after_completion_number < 0:
        raise FieldInvalid("consumer.after_completion_number", "must not be negative")
    check_settings(consumer, UPDATABLE)


def check_settings(consumer: Consumer, paths: Iterable[str]) -> None:
    """Raise FieldInvalid if one of these settings is invalid."""
    for path in paths:
        if path == "ack_deadline":
            if consumer.HasField("ack_deadline"):
                check_ack_deadline("consumer.ack_deadline", consumer.ack_deadline)
        elif path == "on_stale":
            check_enum("consumer.on_stale", StaleAction, consumer.on_stale, unspecified=True)
        elif getattr(consumer, path) < 0:
            raise FieldInvalid(f"consumer.{path}", "must not be negative")


def check_ack_deadline(field: str, deadline: Duration) -> None:
    """Raise FieldInvalid for a time to acknowledge that is not positive or above 7 days."""
    if not (deadline.seconds or deadline.nanos):
        raise FieldInvalid(field, "must be positive")
    check_duration(field, deadline)
    if deadline.seconds * NANOS + deadline.nanos > MAX_ACK_SECONDS * NANOS:
        raise FieldInvalid(field, f"must be at most {MAX_ACK_SECONDS} s (7 days)")


def _check_filter(field: str, message: ConsumerFilter) -> None:
    for name in ("statuses", "modes", "queues"):
        count = len(getattr(message, name))
        if count > MAX_NAMES:
            raise BatchTooLarge(f"{field}.{name}", count, MAX_NAMES)
    for i, status in enumerate(message.statuses):
        check_enum(f"{field}.statuses[{i}]", RolloutStatus, status)
        if status not in FINISHED:
            names = ", ".join(RolloutStatus.Name(final) for final in FINISHED)
            raise FieldInvalid(f"{field}.statuses[{i}]", f"must be a final status, one of {names}")
    for i, mode in enumerate(message.modes):
        check_enum(f"{field}.modes[{i}]", RolloutMode, mode, unspecified=True)
    for i, queue in enumerate(message.queues):
        check_queue(f"{field}.queues[{i}]", queue)
    check_labels(f"{field}.labels", message.labels)


def completed(consumer: Consumer) -> Consumer:
    """Return a copy of a consumer with the defaults of what it leaves out, except its start."""
    found = copied(consumer)
    found.unit = found.unit or CONSUMER_UNIT_ROLLOUT
    found.on_stale = found.on_stale or STALE_ACTION_SKIP
    if not found.HasField("ack_deadline"):
        found.ack_deadline.seconds = DEFAULT_ACK_SECONDS
    return found


def updated(consumer: Consumer, given: Consumer, paths: Iterable[str]) -> Consumer:
    """Return a copy of a consumer with some settings of another one."""
    found = copied(consumer)
    for path in paths:
        found.ClearField(path)  # type: ignore[arg-type]
        if path == "ack_deadline":
            if given.HasField("ack_deadline"):
                found.ack_deadline.CopyFrom(given.ack_deadline)
        elif path != "max_lag" or given.HasField("max_lag"):
            setattr(found, path, getattr(given, path))
    return completed(found)


def creation_digest(consumer: Consumer) -> int:
    """Return a number that distinguishes what consumers of the same name are created with."""
    found = completed(consumer)
    for name in ("statuses", "modes", "queues"):
        names: Any = getattr(found.filter, name)
        ordered = sorted(set(names))
        del names[:]
        names.extend(ordered)
    if Filter.of(found.filter).is_all:
        found.ClearField("filter")
    return zlib.crc32(found.SerializeToString(deterministic=True))


def check_states(field: str, states: Iterable[int]) -> None:
    """Raise FieldInvalid for a state that is unknown or unspecified."""
    for i, state in enumerate(states):
        check_enum(f"{field}[{i}]", DeliveryState, state)


def lag_of(latest_publish_number: int, publish_number: int) -> int:
    """Return how many publications an item is behind; 0 without a publish number."""
    return latest_publish_number - publish_number if publish_number else 0


def publish_number_of(attempts: Iterable[Attempt | None]) -> int:
    """Return the lowest publish number of some attempts, 0 if none has one."""
    numbers = (each.publish_number for each in attempts if each is not None)
    return min((number for number in numbers if number), default=0)


def is_skipped(consumer: Consumer, lag: int) -> bool:
    """Return whether an item with this lag is stale and therefore not delivered."""
    if not consumer.HasField("max_lag") or consumer.on_stale == STALE_ACTION_DELIVER:
        return False
    return lag > consumer.max_lag


def delivery_ids() -> Iterator[str]:
    """Yield new ids of deliveries, without end.

    They share one random number: a thousand of them would hold the event loop for milliseconds.
    """
    name = new_id("de-", 16)
    return (f"{name}-{n}" for n in itertools.count())


def waiting_state(consumer: Consumer, delivery_count: int) -> DeliveryState.ValueType:
    """Return the state of an item that is not being delivered after that many deliveries."""
    most = consumer.max_deliveries
    if most and delivery_count >= most:
        return DELIVERY_STATE_SET_ASIDE
    return DELIVERY_STATE_REDELIVERY
