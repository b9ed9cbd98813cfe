"""`lightningstore consumers`: lists, shows, creates, changes and deletes consumers, and lists their deliveries."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import Any

import click
from lightningstore.service.cli import connection, units
from lightningstore.service.cli.connection import Connection, connected
from lightningstore.service.cli.output import Details, Listing, Output, options
from lightningstore.service.cli.queues import label_option, queues_option
from lightningstore.service.cli.table import Column
from lightningstore.service.cli.views import (
    Limit,
    age,
    enum_words,
    group,
    now,
    number,
    plain,
    time_cell,
    view,
)
from lightningstore.v1 import consumer_pb2, rollout_pb2

#: Word for no limit.
NONE = "none"
_PAGE = 1000
COLUMNS = (
    Column("CONSUMER", "id", rank=0),
    Column("UNIT", rank=3),
    Column("BACKLOG", "number", rank=0),
    Column("OUTSTANDING", "number", rank=1),
    Column("MAX", "number", rank=2),
    Column("DELIVERED", "number", rank=1),
    Column("REDELIVERY", "number", rank=4),
    Column("SET ASIDE", "number", rank=1),
    Column("OLDEST", rank=2),
    Column("CONSUMED", "number", rank=3),
    Column("DROPPED", "number", wide=True),
    Column("SKIPPED", "number", wide=True),
    Column("AFTER", "number", wide=True),
    Column("CREATED", wide=True),
)
DELIVERY_COLUMNS = (
    Column("DELIVERY", "id", rank=0),
    Column("ITEM", "id", rank=0),
    Column("STATE", rank=0),
    Column("NUMBER", "number", rank=2),
    Column("COUNT", "number", rank=1),
    Column("LAG", "number", rank=3),
    Column("DEADLINE", rank=2),
    Column("NOTE", "text", rank=1),
)


def _list(server: Connection) -> Listing:
    """List the consumers of the namespace.

    BACKLOG are the items that wait for their first delivery, OUTSTANDING the rollouts that are claimed, or finished and
    not acknowledged, and OLDEST is the time since the oldest such item finished.
    """
    found = list(server.pages(consumer_pb2.ListConsumersRequest(page_size=_PAGE), "consumers"))
    moment = now()
    rows = [_row(consumer, moment) for consumer in found]
    return Listing("consumer", COLUMNS, rows, [plain(consumer) for consumer in found])


def _row(consumer: Any, moment: datetime) -> list[Any]:
    return [
        consumer.name,
        plain(consumer)["unit"],
        number(consumer.backlog_count),
        number(consumer.outstanding_count),
        number(consumer.max_outstanding) if consumer.max_outstanding else "",
        number(consumer.delivered_count),
        number(consumer.redelivery_count),
        number(consumer.set_aside_count),
        age(consumer.oldest_item_time, moment),
        number(consumer.consumed_count),
        number(consumer.dropped_count),
        number(consumer.skipped_count),
        number(consumer.after_completion_number),
        time_cell(consumer.create_time),
    ]


def _name() -> click.Argument:
    return click.Argument(["name"], metavar="CONSUMER")


def _get(server: Connection, name: str) -> Details:
    """Show everything about a consumer."""
    found = server.call(consumer_pb2.GetConsumerRequest(name=name)).consumer
    return Details(plain(found))


def _deliveries(server: Connection, name: str, limit: float, state: tuple[str, ...]) -> Listing:
    """List what was delivered to a consumer and is not acknowledged, in the order of completion."""
    request = consumer_pb2.ListDeliveriesRequest(
        consumer=name,
        states=[consumer_pb2.DeliveryState.Value(f"DELIVERY_STATE_{w.upper()}") for w in state],
        page_size=int(min(limit + 1, _PAGE)),
    )
    pages = server.pages(request, "deliveries") if limit else iter(())
    found = list(pages if limit == float("inf") else islice(pages, int(limit) + 1))
    is_cut = len(found) > limit
    found = found[: len(found) - is_cut]
    rows = [_delivery(each) for each in found]
    return Listing("delivery", DELIVERY_COLUMNS, rows, [plain(d) for d in found], "", is_cut)


def _delivery(delivery: Any) -> list[Any]:
    return [
        delivery.delivery_id,
        delivery.item_id,
        plain(delivery)["state"],
        number(delivery.completion_number),
        number(delivery.delivery_count),
        number(delivery.lag),
        time_cell(delivery.ack_deadline_time),
        delivery.note,
    ]


class _Most(click.ParamType):  # type: ignore[type-arg]
    """A number up to a bound, or none."""

    name = "number|none"

    def __init__(self, bound: int) -> None:
        self._bound = bound

    def convert(self, value: Any, param: Any, ctx: Any) -> int | None:
        """Return the number, -1 for none."""
        if value in (NONE, -1):
            return -1
        try:
            found = int(value)
        except ValueError:
            found = -1
        if not 0 <= found <= self._bound:
            self.fail(
                f"{value!r} is neither a number from 0 to {self._bound} nor {NONE}", param, ctx
            )
        return found


class _Seconds(click.ParamType):  # type: ignore[type-arg]
    """A duration."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds."""
        try:
            found = float(value) if isinstance(value, float) else units.seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if found < 0:
            self.fail(f"{value!r} must not be negative", param, ctx)
        return found


def _settings() -> list[click.Parameter]:
    """Return the options for the settings of a consumer."""
    words = enum_words(consumer_pb2.StaleAction.keys(), "STALE_ACTION_")
    return [
        click.Option(
            ["--ack-deadline"], type=_Seconds(), help="Time to acknowledge a delivery: 30s, 2h."
        ),
        click.Option(
            ["--max-lag"],
            type=_Most(units.MAX_INT64),
            help="Highest lag of an item that is not stale, or none.",
        ),
        click.Option(["--on-stale"], type=click.Choice(words), help="What happens to stale items."),
        click.Option(
            ["--max-outstanding"],
            type=_Most(units.MAX_INT64),
            help="Maximum number of rollouts that are claimed, or finished and not acknowledged; or none.",
        ),
        click.Option(
            ["--max-deliveries"],
            type=_Most(units.MAX_INT32),
            help="Number of deliveries after which an item is set aside, or none.",
        ),
    ]


_SETTINGS = ("ack_deadline", "max_lag", "on_stale", "max_outstanding", "max_deliveries")


def _apply(given: dict[str, Any], record: consumer_pb2.Consumer) -> list[str]:
    """Set the settings that the options name, and return their names."""
    named = [name for name in _SETTINGS if given[name] is not None]
    for name in named:
        value = given[name]
        if name == "ack_deadline":
            record.ack_deadline.FromNanoseconds(round(value * 1e9))
        elif name == "on_stale":
            record.on_stale = consumer_pb2.StaleAction.Value(f"STALE_ACTION_{value.upper()}")
        elif value != -1:
            setattr(record, name, value)
    return named


def _create(name: str, **given: Any) -> None:
    """Create a consumer. Repeating the command with the same options changes nothing."""
    shown = Output(given)
    request = consumer_pb2.CreateConsumerRequest()
    record = request.consumer
    record.name = name
    if given["unit"]:
        record.unit = consumer_pb2.ConsumerUnit.Value(f"CONSUMER_UNIT_{given['unit'].upper()}")
    chosen = consumer_pb2.ConsumerFilter(
        statuses=[_status(word) for word in given["status"]],
        queues=given["queues"],
        labels=given["labels"],
    )
    if chosen.ListFields():
        record.filter.CopyFrom(chosen)
    if given["after"] is not None:
        record.after_completion_number = given["after"]
    _apply(given, record)
    with connected(connection.take(given)) as server:
        _say(shown, server.call(request).consumer, "created")


def _status(word: str) -> Any:
    return rollout_pb2.RolloutStatus.Value(f"ROLLOUT_STATUS_{word.upper()}")


def _update(name: str, **given: Any) -> None:
    """Change settings of a consumer. What is not given stays as it is."""
    shown = Output(given)
    request = consumer_pb2.UpdateConsumerRequest()
    request.consumer.name = name
    request.update_mask.paths.extend(_apply(given, request.consumer))
    if not request.update_mask.paths:
        raise click.UsageError("no setting is given: there is nothing to change")
    with connected(connection.take(given)) as server:
        _say(shown, server.call(request).consumer, "changed")


def _say(shown: Output, consumer: consumer_pb2.Consumer, done: str) -> None:
    if shown.format is None:
        click.echo(f"{consumer.name}\t{done}")
    else:
        shown.details(Details(plain(consumer)))


def _delete(name: str, **given: Any) -> None:
    """Delete a consumer. The rollouts that it has yet to acknowledge stay."""
    with connected(connection.take(given)) as server:
        server.call(consumer_pb2.DeleteConsumerRequest(name=name))
    click.echo(f"{name}\tdeleted")


def _acknowledge(
    name: str, delivery_ids: tuple[str, ...], outcome: str, note: str, **given: Any
) -> None:
    """End deliveries, such as those of items that are set aside: `release` them, or `drop` them."""
    request = consumer_pb2.AcknowledgeRequest(
        consumer=name,
        delivery_ids=delivery_ids,
        outcome=consumer_pb2.AckOutcome.Value(f"ACK_OUTCOME_{outcome.upper()}"),
        note=note,
        request_id=uuid.uuid4().hex,
    )
    with connected(connection.take(given)) as server:
        server.call(request)
    for delivery_id in dict.fromkeys(delivery_ids):
        click.echo(f"{delivery_id}\t{outcome}")


def _command(name: str, function: Callable[..., None], *own: click.Parameter) -> click.Command:
    return click.Command(
        name, callback=function, help=function.__doc__, params=[*own, *connection.options()]
    )


_FILTERS = (
    click.Option(
        ["--unit"],
        type=click.Choice(enum_words(consumer_pb2.ConsumerUnit.keys(), "CONSUMER_UNIT_")),
        help="What is delivered. Default: rollout.",
    ),
    click.Option(
        ["--status"],
        multiple=True,
        type=click.Choice(["succeeded", "failed", "cancelled"]),
        help="Only rollouts that finished with these statuses.",
    ),
    queues_option("Only rollouts of these task queues."),
    label_option("Only rollouts with these labels."),
    click.Option(
        ["--after"],
        type=click.IntRange(0, units.MAX_INT64),
        help="Deliver what has a greater completion number; 0: everything. Default: what finishes from now on.",
    ),
)
_STATES = click.Option(
    ["--state"],
    multiple=True,
    type=click.Choice(enum_words(consumer_pb2.DeliveryState.keys(), "DELIVERY_STATE_")),
    help="Only these states.",
)
_LIMIT = click.Option(
    ["-L", "--limit"],
    type=Limit(),
    default=50,
    help="Maximum number of deliveries, or all. Default: 50.",
)
_OUTCOME = click.Option(
    ["--outcome"],
    type=click.Choice(enum_words(consumer_pb2.AckOutcome.keys(), "ACK_OUTCOME_")),
    default="released",
    help="What becomes of the items. Default: released.",
)

consumers = group(
    "consumers",
    "List, create, change and delete consumers of finished work. Without a command: list them.",
    view("list")(_list),
    view("get", _name())(_get),
    view("deliveries", _name(), _STATES, _LIMIT)(_deliveries),
    _command("create", _create, _name(), *_FILTERS, *_settings(), *options()),
    _command("update", _update, _name(), *_settings(), *options()),
    _command("delete", _delete, _name()),
    _command(
        "acknowledge",
        _acknowledge,
        _name(),
        click.Argument(["delivery_ids"], metavar="DELIVERY...", nargs=-1, required=True),
        _OUTCOME,
        click.Option(["--note"], default="", metavar="TEXT", help="Why, for people."),
    ),
)
