"""The other lists: attempts of a rollout, workers, resources."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.output import Listing
from lightningstore.service.cli.rewards import quick_reward
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.views import (
    age,
    duration,
    enum_words,
    failure_text,
    lags_of,
    now,
    number,
    plain,
    resolve,
    reward_cell,
    rollout_argument,
    sort_order,
    time_cell,
    view,
)
from lightningstore.v1 import attempt_pb2, resources_pb2, worker_pb2

_PAGE = 1000
#: Seconds without heartbeat and claim after which a worker is shown as gone: runners send both every few seconds.
GONE_SECONDS = 120
WORKER_SORTS = (
    *("worker_id", "status", "last_heartbeat_time", "last_dequeue_time", "last_busy_time"),
    *("last_idle_time", "current_rollout_id", "current_attempt_id", "publish_number"),
)


@view("attempts", rollout_argument())
def attempts(server: Connection, rollout_id: str) -> Listing:
    """List the attempts of a rollout, the first one first. ROLLOUT may be `latest`."""
    request = attempt_pb2.ListAttemptsRequest(
        rollout_id=resolve(server, rollout_id), page_size=_PAGE
    )
    found = list(server.pages(request, "attempts"))
    rewards = [quick_reward(server, attempt) for attempt in found]
    lags = lags_of(server, found)
    moment = now()
    columns = (
        Column("ATTEMPT", "id", rank=0),
        Column("STATUS", rank=0),
        Column("SPANS", "number"),
        Column("REWARD", "number"),
        Column("AGE", rank=2),
        Column("DURATION", rank=3),
        Column("WORKER", "id", rank=5),
        Column("FAILURE", "text", rank=4),
        Column("LAG", "number", rank=6),
        Column("RESOURCES", wide=True),
        Column("HEARTBEAT", wide=True),
    )
    rows = [
        [
            attempt.attempt_id,
            plain(attempt)["status"],
            number(attempt.span_count),
            reward_cell(reward),
            age(attempt.start_time, moment),
            duration(attempt.start_time, attempt.end_time, moment),
            attempt.worker_id,
            failure_text(attempt),
            _lag_cell(lag),
            _version(attempt.resources_id, attempt.resources_version),
            time_cell(attempt.last_heartbeat_time),
        ]
        for attempt, reward, lag in zip(found, rewards, lags, strict=True)
    ]
    records = [
        {**plain(attempt), "reward": reward, "lag": lag}
        for attempt, reward, lag in zip(found, rewards, lags, strict=True)
    ]
    return Listing("attempt", columns, rows, records)


def _lag_cell(lag: int | None) -> Cell:
    return Cell.of("") if lag is None else number(lag)


def _version(resources_id: str, version: int) -> str:
    return f"{resources_id} version {version}" if resources_id else ""


@view(
    "workers",
    click.Option(
        ["--status"],
        multiple=True,
        type=click.Choice(enum_words(worker_pb2.WorkerStatus.keys(), "WORKER_STATUS_")),
        help="Only these statuses.",
    ),
    click.Option(["--id-contains"], default="", metavar="TEXT", help="Only ids with this text."),
    click.Option(
        ["--sort"],
        callback=sort_order(WORKER_SORTS),
        metavar="FIELD[:desc]",
        help=f"Order by one of {', '.join(WORKER_SORTS)}. Default: worker_id.",
    ),
    click.Option(
        ["--min-publish-number"],
        type=click.IntRange(1, units.MAX_INT64),
        metavar="N",
        help="Only workers that have loaded resources with this publish number or a higher one.",
    ),
)
def workers(
    server: Connection,
    status: tuple[str, ...],
    id_contains: str,
    sort: str,
    min_publish_number: int | None,
) -> Listing:
    """List workers: what they do, and when they were last seen."""
    request = worker_pb2.ListWorkersRequest(
        statuses=[worker_pb2.WorkerStatus.Value(f"WORKER_STATUS_{w.upper()}") for w in status],
        worker_id_contains=id_contains,
        order_by=sort,
        min_publish_number=min_publish_number or 0,
        page_size=_PAGE,
    )
    found = list(server.pages(request, "workers"))
    moment = now()
    columns = (
        Column("WORKER", "id", rank=0),
        Column("STATUS", rank=0),
        Column("ROLLOUT", "id", rank=3),
        Column("ATTEMPT", "id", rank=4),
        Column("LAST SEEN", rank=0),
        Column("DEQUEUE", rank=2),
        Column("STATS", "text", rank=5),
        Column("PUBLISH NUMBER", "number", rank=1),
    )
    rows: list[list[Any]] = [
        [
            worker.worker_id,
            _worker_status(worker, moment),
            worker.current_rollout_id,
            worker.current_attempt_id,
            age(_last_seen(worker), moment),
            age(worker.last_dequeue_time, moment),
            worker.stats_json.decode(errors="replace"),
            number(worker.publish_number) if worker.publish_number else "",
        ]
        for worker in found
    ]
    return Listing("worker", columns, rows, [plain(worker) for worker in found])


def _last_seen(worker: worker_pb2.Worker) -> Any:
    """Return the Timestamp of a worker's last heartbeat or claim."""
    times = (worker.last_heartbeat_time, worker.last_dequeue_time)
    return max(times, key=lambda time: (time.seconds, time.nanos))


def _worker_status(worker: worker_pb2.Worker, now: datetime) -> Cell:
    """Return the cell of a status. A worker that was not seen for minutes has ended, or cannot reach the server.

    The store keeps the status that it had then.
    """
    status = plain(worker)["status"]
    seen = units.moment(_last_seen(worker))
    is_gone = (
        status != "busy"  # its attempt ends by its own time limits
        and seen is not None
        and (now - seen).total_seconds() > GONE_SECONDS
    )
    return Cell("gone" if is_gone else status, status)


@view(
    "resources",
    click.Option(["--id-contains"], default="", metavar="TEXT", help="Only ids with this text."),
    click.Option(["--show-secrets"], is_flag=True, help="Print the keys of endpoints."),
)
def resources(server: Connection, id_contains: str, *, show_secrets: bool) -> Listing:
    """List the current versions of resources in the order in which they were added; keys of endpoints are masked."""
    request = resources_pb2.ListResourcesRequest(resources_id_contains=id_contains, page_size=_PAGE)
    found = list(server.pages(request, "resources"))
    moment = now()
    columns = (
        Column("RESOURCES", "id", rank=0),
        Column("VERSION", "number", rank=0),
        Column("UPDATED", rank=1),
        Column("NAMES", "text", rank=2),
        Column("PUBLISH NUMBER", "number", rank=0),
    )
    rows = [
        [
            one.resources_id,
            number(one.version),
            age(one.update_time, moment),
            Cell.of(", ".join(_names(one))),
            number(one.publish_number),
        ]
        for one in found
    ]
    records = [plain(one, show_secrets=show_secrets) for one in found]
    return Listing("set of resources", columns, rows, records)


def _names(message: Any) -> list[str]:
    """Return the names of resources in the order in which they were given."""
    listed = [name for name in message.names if name in message.resources]
    return [*listed, *sorted(set(message.resources) - set(listed))]
