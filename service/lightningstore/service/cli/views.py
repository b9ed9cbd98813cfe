"""What the commands that look at a server have in common: options, the connection, cells of tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from lightningstore.service.cli import connection, ids, output, units, watch
from lightningstore.service.cli.connection import Connection, connected
from lightningstore.service.cli.outcomes import FINISHED
from lightningstore.service.cli.output import Details, Listing, NothingYet, Output
from lightningstore.service.cli.table import Cell
from lightningstore.service.traces.texts import printable

if TYPE_CHECKING:
    from google.protobuf.message import Message

LATEST = ids.LATEST
Fetch = Callable[..., Listing | Details]


def view(
    name: str, *parameters: click.Parameter, watches: bool = True
) -> Callable[[Fetch], click.Command]:
    """Make a command out of a function that returns a list or details of a Connection."""

    def wrap(function: Fetch) -> click.Command:
        def run(**given: Any) -> None:
            shown = Output(given)
            follows = given.pop("watch", False)
            with connected(connection.take(given)) as server:
                if follows:
                    watch.follow(shown, lambda: function(server, **given))
                else:
                    shown.show(function(server, **given))

        return click.Command(
            name,
            callback=run,
            help=function.__doc__,
            params=[
                *parameters,
                *output.options(),
                *([watch.option] if watches else []),
                *connection.options(),
            ],
        )

    return wrap


def group(name: str, help_text: str, default: click.Command, *others: click.Command) -> click.Group:
    """Make a group of commands, which runs `default` without one. Options before a command are those of all."""
    commands = {command.name: command for command in (default, *others) if command.name}

    @click.pass_context
    def run(context: click.Context, /, **given: Any) -> Any:
        if context.invoked_subcommand is None:
            return context.invoke(default, **given)
        shared = {key: given[key] for key in connection.NAMES if given.get(key) is not None}
        context.default_map = dict.fromkeys(commands, shared)
        return None

    return click.Group(
        name,
        commands,
        callback=run,
        help=help_text,
        invoke_without_command=True,
        params=default.params,
    )


def rollout_argument() -> click.Argument:
    """Return the argument that names a rollout."""
    return click.Argument(["rollout_id"], metavar="ROLLOUT", shell_complete=ids.rollouts)


def rollouts_argument() -> click.Argument:
    """Return the argument that names rollouts."""
    return click.Argument(
        ["rollout_ids"],
        metavar="ROLLOUT...",
        nargs=-1,
        required=True,
        shell_complete=ids.rollouts,
    )


def resolve(server: Connection, rollout_id: str) -> str:
    """Return the id of a rollout; of `latest` that of the one enqueued last. Raises click.ClickException."""
    if rollout_id != LATEST:
        return rollout_id
    from lightningstore.v1 import rollout_pb2  # noqa: PLC0415

    request = rollout_pb2.ListRolloutsRequest(
        order_by="start_time desc", page_size=1, omit_payloads=True
    )
    for found in server.call(request).rollouts:
        return str(found.rollout_id)
    raise NothingYet("the store has no rollout yet")


def check_attempted(rollout: Any) -> None:
    """Raise click.ClickException for a rollout without an attempt."""
    if rollout.attempt_count:
        return
    status = plain(rollout)["status"]
    if status in FINISHED:
        raise click.ClickException(f"rollout {rollout.rollout_id!r} is {status} and had no attempt")
    raise NothingYet(f"rollout {rollout.rollout_id!r} is {status} and has no attempt yet")


def plain(message: Message, *, show_secrets: bool = False) -> dict[str, Any]:
    """Return a message as JSON values, keys of endpoints masked."""
    from lightningstore.client.message_json import message_to_json  # noqa: PLC0415
    from lightningstore.service.security.masking import mask_keys  # noqa: PLC0415

    if not show_secrets:
        mask_keys(message)
    return message_to_json(message)


def lags_of(server: Connection, attempts: Sequence[Any]) -> list[int | None]:
    """Return how many publications of resources each attempt is behind, None where that is not known."""
    from lightningstore.v1 import statistics_pb2  # noqa: PLC0415

    if not any(attempt.publish_number for attempt in attempts):
        return [None] * len(attempts)
    latest = server.call(statistics_pb2.GetStatisticsRequest()).latest_publish_number
    return [latest - a.publish_number if a.publish_number else None for a in attempts]


def enum_words(names: Sequence[str], prefix: str) -> list[str]:
    """Return the words of an enum of the contract, unspecified left out."""
    return [name.removeprefix(prefix).lower() for name in names if not name.endswith("UNSPECIFIED")]


def number(value: int) -> Cell:
    """Return the cell of a count."""
    return Cell(f"{value:,}", str(value))


def reward_cell(value: float | None) -> Cell:
    """Return the cell of a reward."""
    return Cell("", "") if value is None else Cell(f"{value:.4g}", repr(value))


def age(stamp: Any, now: datetime) -> Cell:
    """Return the cell of a Timestamp: how long ago for people, the time for programs."""
    found = units.moment(stamp)
    if found is None:
        return Cell("", "")
    return Cell(units.age((now - found).total_seconds()), stamp.ToJsonString())


def time_cell(stamp: Any) -> Cell:
    """Return the cell of a Timestamp, to the second for people."""
    found = units.moment(stamp)
    if found is None:
        return Cell("", "")
    return Cell(f"{found:%Y-%m-%dT%H:%M:%SZ}", stamp.ToJsonString())


def duration(start: Any, end: Any, now: datetime) -> Cell:
    """Return the cell of the time between two Timestamps; if the second is unset, of the time until now."""
    begun = units.moment(start)
    if begun is None:
        return Cell("", "")
    ended = units.moment(end)
    seconds = max(0.0, ((ended or now) - begun).total_seconds())
    return Cell(units.span(seconds), f"{seconds:.3f}", is_running=ended is None)


def failure_text(attempt: Any) -> str:
    """Return why an attempt failed, in one line."""
    parts = (attempt.failure.type, " ".join(attempt.failure.message.split()))
    return printable(": ".join(filter(None, parts)))


class Limit(click.ParamType):  # type: ignore[type-arg]
    """A maximum number, or all."""

    name = "number|all"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the number; infinity for all."""
        if value in ("all", "-1"):
            return math.inf
        try:
            number = int(value)
        except ValueError:
            number = -1
        if number < 0:
            self.fail(f"{value!r} is neither a number nor all", param, ctx)
        return number if number < units.MAX_INT64 else math.inf


def sort_order(fields: Sequence[str]) -> Callable[..., str]:
    """Return the check of --sort for a list that can be sorted by these fields."""

    def check(_context: object, _option: object, value: str | None) -> str:
        field, _, direction = (value or "").partition(":")
        if value and (field not in fields or direction not in ("", "asc", "desc")):
            raise click.BadParameter(
                f"{value!r} is not FIELD or FIELD:desc; fields: {', '.join(fields)}"
            )
        return f"{field} {direction}".strip()

    return check


def now() -> datetime:
    """Return the time by the clock of this machine, which ages are measured with."""
    return datetime.now(UTC)
