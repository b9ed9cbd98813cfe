"""`lightningstore rollouts`: the list of rollouts, with every filter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import click
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.output import Listing
from lightningstore.service.cli.queues import label_option, queues_option
from lightningstore.service.cli.rewards import quick_reward
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.views import (
    Limit,
    age,
    duration,
    enum_words,
    failure_text,
    now,
    number,
    plain,
    reward_cell,
    sort_order,
    time_cell,
    view,
)
from lightningstore.v1 import rollout_pb2

STATUSES = enum_words(rollout_pb2.RolloutStatus.keys(), "ROLLOUT_STATUS_")
#: "none": rollouts without a mode.
MODES = [*enum_words(rollout_pb2.RolloutMode.keys(), "ROLLOUT_MODE_"), "none"]
SORTS = (
    *("start_time", "end_time", "status", "mode", "priority", "group_id", "resources_id"),
    *("rollout_id", "attempt_count", "completion_number", "reward"),
)
MAX_PAGE = 1000

COLUMNS = (
    Column("ROLLOUT", "id", rank=0),
    Column("STATUS", rank=0),
    Column("MODE", rank=4),
    Column("GROUP", "id", rank=6),
    Column("ATTEMPTS", "number", rank=5),
    Column("REWARD", "number", rank=1),
    Column("AGE", rank=2),
    Column("DURATION", rank=3),
    Column("WORKER", "id", rank=7),
    Column("FAILURE", "text", rank=2),
    Column("INPUT", "text", rank=8, least=24),
    Column("PRIORITY", "number", wide=True),
    Column("RESOURCES", wide=True),
    Column("ATTEMPT", wide=True),
    Column("ENQUEUED", wide=True),
    Column("ENDED", wide=True),
)


def mode_number(word: str) -> Any:
    """Return the number of a mode, 0 for "none"."""
    return 0 if word == "none" else rollout_pb2.RolloutMode.Value(f"ROLLOUT_MODE_{word.upper()}")


def status_number(word: str) -> Any:
    """Return the number of a status."""
    return rollout_pb2.RolloutStatus.Value(f"ROLLOUT_STATUS_{word.upper()}")


def _since(_context: object, _option: object, value: str | None) -> datetime | None:
    try:
        return units.moment_of(value, now()) if value else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def filter_options() -> list[click.Parameter]:
    """Return the options for the filters of the server, which `set_filters` takes."""
    return [
        click.Option(
            ["--status"], multiple=True, type=click.Choice(STATUSES), help="Only these statuses."
        ),
        click.Option(["--mode"], multiple=True, type=click.Choice(MODES), help="Only these modes."),
        click.Option(["--group"], multiple=True, metavar="ID", help="Only these groups."),
        queues_option("Only these task queues; '' is the default one."),
        label_option("Only rollouts with this label. May be repeated: with all of them."),
        click.Option(["--id"], multiple=True, metavar="ID", help="Only these rollouts."),
        click.Option(
            ["--id-contains"], default="", metavar="TEXT", help="Only ids with this text."
        ),
        click.Option(
            ["--min-reward"], type=float, metavar="X", help="Only those with at least this reward."
        ),
        click.Option(
            ["--max-reward"], type=float, metavar="X", help="Only those with at most this reward."
        ),
        click.Option(["--any"], is_flag=True, help="Join the filters of the server by or."),
    ]


def set_filters(request: Any, given: Mapping[str, Any]) -> None:
    """Set the filters of a request by the options of a command."""
    request.statuses.extend(status_number(word) for word in given["status"])
    request.rollout_ids.extend(given["id"])
    request.rollout_id_contains = given["id_contains"]
    request.modes.extend(mode_number(word) for word in given["mode"])
    request.group_ids.extend(given["group"])
    request.queues.extend(given["queues"])
    request.labels.update(given["labels"])
    for name in ("min_reward", "max_reward"):
        if given[name] is not None:
            setattr(request, name, given[name])
    if given["any"]:
        request.filter_logic = rollout_pb2.FILTER_LOGIC_OR


class _Filters:
    """Which rollouts are listed: what the server filters by, and what is looked at here."""

    def __init__(self, given: dict[str, Any]) -> None:
        self._since: datetime | None = given["since"]
        self._worker: str = given["worker"]
        self._resources: str = given["resources"]
        self.newest = given["newest"] is not False and not given["sort"]
        default = "" if given["newest"] is False else "start_time desc"
        self.request = rollout_pb2.ListRolloutsRequest(
            order_by=given["sort"] or default, failure_contains=given["error"]
        )
        set_filters(self.request, given)

    @property
    def are_the_servers(self) -> bool:
        """Whether the server alone filters, and can count what matches."""
        return not (self._since or self._worker or self._resources)

    def matches(self, rollout: rollout_pb2.Rollout) -> bool:
        """Tell whether a rollout that the server returned is listed."""
        attempt = rollout.latest_attempt
        return (
            (not self._worker or attempt.worker_id == self._worker)
            and (not self._resources or rollout.resources_id == self._resources)
            and not self.is_too_old(rollout)
        )

    def is_too_old(self, rollout: rollout_pb2.Rollout) -> bool:
        """Tell whether a rollout was enqueued before --since."""
        start = units.moment(rollout.start_time)
        return bool(self._since and start and start < self._since)


def _matching(server: Connection, filters: _Filters, page_size: int) -> Iterator[Any]:
    request = rollout_pb2.ListRolloutsRequest()
    request.CopyFrom(filters.request)
    request.page_size = page_size
    for rollout in server.pages(request, "rollouts"):
        if filters.newest and filters.is_too_old(rollout):
            return  # all that follow are older
        if filters.matches(rollout):
            yield rollout


def _rollouts(server: Connection, limit: float, *, reward: bool, **given: Any) -> Listing:
    """List rollouts, the newest first.

    Several values of one filter are joined by or, different filters by and (--any: or). The server filters by
    all options but --worker, --resources and --since, which further narrow what it returns; for a rare value that
    reads many rollouts.
    """
    filters = _Filters(given)
    found: list[Any] = []
    is_cut = False
    # One more than is shown tells whether there are more.
    size = int(min(limit + 1, MAX_PAGE)) if filters.are_the_servers else MAX_PAGE
    for rollout in _matching(server, filters, size) if limit else ():
        if len(found) == limit:
            is_cut = True
            break
        found.append(rollout)
    rewards = [quick_reward(server, r.latest_attempt) if reward else None for r in found]
    moment = now()

    def total() -> int:
        request = rollout_pb2.ListRolloutsRequest(
            page_size=1, include_total_size=True, omit_payloads=True
        )
        request.MergeFrom(filters.request)
        return int(server.call(request).total_size)

    note = "newest first" if filters.newest else "oldest first"
    return Listing(
        "rollout",
        COLUMNS,
        [_row(r, value, moment) for r, value in zip(found, rewards, strict=True)],
        [{**plain(r), "reward": value} for r, value in zip(found, rewards, strict=True)],
        f"by {given['sort']}" if given["sort"] else note,
        is_cut,
        total if filters.are_the_servers else None,
    )


def _row(rollout: Any, reward: float | None, moment: datetime) -> list[Any]:
    attempt = rollout.latest_attempt
    record = plain(rollout)
    return [
        rollout.rollout_id,
        record["status"],
        record["mode"],
        rollout.group_id,
        number(rollout.attempt_count),
        reward_cell(reward),
        age(rollout.start_time, moment),
        duration(attempt.start_time, attempt.end_time, moment),
        attempt.worker_id,
        failure_text(attempt),
        _one_line(rollout.input_json),
        number(rollout.priority),
        rollout.resources_id,
        attempt.attempt_id,
        time_cell(rollout.start_time),
        time_cell(rollout.end_time),
    ]


def _one_line(text: bytes) -> Cell:
    """Return the cell of JSON: as it was given, without its line breaks."""
    return Cell.of(" ".join(text.decode(errors="replace").split()))


rollouts = view(
    "rollouts",
    *filter_options(),
    click.Option(
        ["--worker"], default="", metavar="ID", help="Only those whose latest attempt it claimed."
    ),
    click.Option(
        ["--resources"], default="", metavar="ID", help="Only those with these resources."
    ),
    click.Option(
        ["--error"],
        default="",
        metavar="TEXT",
        help="Only those whose latest attempt failed with this text in 'type: message', whatever the case.",
    ),
    click.Option(
        ["--since"],
        callback=_since,
        metavar="TIME",
        help="Only those enqueued since: 30m, 2h or 7d ago, or a time like 2026-01-31T12:00:00Z.",
    ),
    click.Option(
        ["--sort"],
        callback=sort_order(SORTS),
        metavar="FIELD[:desc]",
        help=f"Order by one of {', '.join(SORTS)}.",
    ),
    click.Option(["--newest/--oldest"], default=None, help="Which end to start from."),
    click.Option(
        ["-L", "--limit"],
        type=Limit(),
        default=50,
        help="Maximum number of rollouts, or all. Default: 50.",
    ),
    click.Option(
        ["--reward/--no-reward"],
        default=True,
        help="Look up rewards; a call or two for each rollout with spans whose record has none. Default: --reward.",
    ),
)(_rollouts)
