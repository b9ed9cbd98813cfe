"""`lightningstore groups`: lists groups, or shows one with all its fields."""

from __future__ import annotations

from datetime import datetime
from itertools import islice
from typing import Any

import click
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.output import Details, Listing
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.views import (
    Limit,
    age,
    duration,
    enum_words,
    now,
    number,
    plain,
    reward_cell,
    time_cell,
    view,
)
from lightningstore.v1 import group_pb2

_PAGE = 1000
COLUMNS = (
    Column("GROUP", "id", rank=0),
    Column("STATUS", rank=0),
    Column("FINISHED", "number", rank=0),
    Column("SIZE", "number", rank=0),
    Column("MEAN", "number", rank=2),
    Column("STD", "number", rank=3),
    Column("AGE", rank=1),
    Column("DURATION", rank=4),
    Column("VERSIONS", "number", rank=5),
    Column("NUMBER", "number", wide=True),
    Column("MEMBERS", "number", wide=True),
    Column("MIN", "number", wide=True),
    Column("MAX", "number", wide=True),
    Column("START", wide=True),
    Column("FIRST CLAIM", wide=True),
    Column("END", wide=True),
)


def _groups(
    server: Connection, group_id: str | None, limit: float, status: tuple[str, ...]
) -> Listing | Details:
    """List groups in the order in which they were created. With GROUP, show everything about one.

    The columns MEAN and STD are those of the rewards of a group's members. VERSIONS are the lowest and the highest
    publish number of the resources that they were claimed with.
    """
    if group_id is not None:
        if status:
            raise click.UsageError("--status filters the list: leave it out, or leave out GROUP")
        found = server.call(group_pb2.GetGroupRequest(group_id=group_id)).group
        return Details(plain(found), found.status == group_pb2.GROUP_STATUS_COMPLETE)
    request = group_pb2.ListGroupsRequest(
        statuses=[group_pb2.GroupStatus.Value(f"GROUP_STATUS_{word.upper()}") for word in status],
        page_size=int(min(limit + 1, _PAGE)),
    )
    pages = server.pages(request, "groups") if limit else iter(())
    groups = list(pages if limit == float("inf") else islice(pages, int(limit) + 1))
    is_cut = len(groups) > limit
    groups = groups[: len(groups) - is_cut]
    moment = now()
    rows = [_row(group, moment) for group in groups]
    return Listing("group", COLUMNS, rows, [plain(group) for group in groups], "", is_cut)


def _row(group: Any, moment: datetime) -> list[Any]:
    rewards = group.rewards if group.HasField("rewards") else None
    return [
        group.group_id,
        plain(group)["status"],
        number(group.finished_count),
        number(group.size),
        reward_cell(rewards and rewards.mean),
        reward_cell(rewards and rewards.std),
        age(group.start_time, moment),
        duration(group.first_claim_time, group.end_time, moment),
        _versions(group),
        number(group.completion_number) if group.completion_number else "",
        number(group.member_count),
        reward_cell(rewards and rewards.min),
        reward_cell(rewards and rewards.max),
        time_cell(group.start_time),
        time_cell(group.first_claim_time),
        time_cell(group.end_time),
    ]


def _versions(group: Any) -> Cell:
    lowest, highest = group.min_publish_number, group.max_publish_number
    if lowest == highest:
        return number(lowest) if lowest else Cell.of("")
    return Cell.of(f"{lowest}-{highest}")


groups = view(
    "groups",
    click.Argument(["group_id"], metavar="[GROUP]", required=False),
    click.Option(
        ["--status"],
        multiple=True,
        type=click.Choice(enum_words(group_pb2.GroupStatus.keys(), "GROUP_STATUS_")),
        help="Only these statuses.",
    ),
    click.Option(
        ["-L", "--limit"],
        type=Limit(),
        default=50,
        help="Maximum number of groups, or all. Default: 50.",
    ),
)(_groups)
