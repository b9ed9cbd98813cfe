"""Everything about one rollout, attempt, worker or set of resources, and about the server."""

from __future__ import annotations

from typing import Any

import click
from lightningstore.client.namespaces import DEFAULT_NAMESPACE
from lightningstore.service.cli import ids, units
from lightningstore.service.cli.connection import Connection
from lightningstore.service.cli.outcomes import FINISHED
from lightningstore.service.cli.output import Details
from lightningstore.service.cli.rewards import exact_reward
from lightningstore.service.cli.views import (
    LATEST,
    check_attempted,
    lags_of,
    plain,
    resolve,
    rollout_argument,
    view,
)
from lightningstore.v1 import (
    attempt_pb2,
    resources_pb2,
    rollout_pb2,
    statistics_pb2,
    worker_pb2,
)

_UNDER_WAY = ("preparing", "running")


@view("rollout", rollout_argument())
def rollout(server: Connection, rollout_id: str) -> Details:
    """Show everything about a rollout and its attempts. ROLLOUT may be `latest`."""
    rollout_id = resolve(server, rollout_id)
    found = server.call(rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)).rollout
    request = attempt_pb2.ListAttemptsRequest(rollout_id=rollout_id, page_size=1000)
    record = plain(found)
    record.pop("latest_attempt")
    record["reward"] = exact_reward(server, found.latest_attempt)
    record["attempts"] = [plain(attempt) for attempt in server.pages(request, "attempts")]
    return Details(record, record["status"] in FINISHED)


@view(
    "attempt",
    rollout_argument(),
    click.Argument(["attempt_id"], metavar="[ATTEMPT]", required=False, default=LATEST),
)
def attempt(server: Connection, rollout_id: str, attempt_id: str) -> Details:
    """Show everything about an attempt, by default the latest one of its rollout."""
    rollout_id = resolve(server, rollout_id)
    if attempt_id == LATEST:
        check_attempted(server.call(rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)).rollout)
    request = attempt_pb2.GetAttemptRequest(rollout_id=rollout_id, attempt_id=attempt_id)
    found = server.call(request).attempt
    (lag,) = lags_of(server, [found])
    record = {**plain(found), "reward": exact_reward(server, found), "lag": lag}
    return Details(record, record["status"] not in _UNDER_WAY)


@view("worker", click.Argument(["worker_id"], metavar="WORKER", shell_complete=ids.workers))
def worker(server: Connection, worker_id: str) -> Details:
    """Show everything about a worker."""
    found = server.call(worker_pb2.GetWorkerRequest(worker_id=worker_id)).worker
    return Details(plain(found))


@view(
    "resource",
    click.Argument(
        ["resources_id"],
        metavar="[RESOURCES]",
        required=False,
        default=LATEST,
        shell_complete=ids.resources,
    ),
    click.Option(
        ["--version"],
        type=click.IntRange(1, units.MAX_INT32),
        metavar="N",
        help="Version of these resources (default: the current one).",
    ),
    click.Option(
        ["--publish-number"],
        type=click.IntRange(1, units.MAX_INT64),
        metavar="N",
        help="Publish number of the version, instead of RESOURCES and --version.",
    ),
    click.Option(["--show-secrets"], is_flag=True, help="Print the keys of endpoints."),
)
def resource(
    server: Connection,
    resources_id: str,
    version: int | None,
    publish_number: int | None,
    *,
    show_secrets: bool,
) -> Details:
    """Show resources with all that they hold, by default the latest ones. Keys of endpoints are masked."""
    if publish_number and (resources_id != LATEST or version):
        raise click.UsageError(
            "--publish-number identifies a version: leave out RESOURCES and --version"
        )
    if version and resources_id == LATEST:
        raise click.UsageError("--version requires an id: versions count for each id")
    request = resources_pb2.GetResourcesRequest(
        resources_id="" if resources_id == LATEST else resources_id,
        version=version or 0,
        publish_number=publish_number or 0,
    )
    record = plain(server.call(request).resources, show_secrets=show_secrets)
    return Details(record)


@view("status")
def status(server: Connection) -> Details:
    """Show what the server is, and how much the namespace holds."""
    info: dict[str, Any] = plain(server.call(statistics_pb2.GetServerInfoRequest()))
    counts: dict[str, Any] = plain(server.call(statistics_pb2.GetStatisticsRequest()))
    by_status = {
        noun: {one["status"]: one["count"] for one in counts[noun]}
        for noun in ("rollouts", "attempts", "workers")
    }
    by_status["queues"] = {one["queue"] or "(default)": one["depth"] for one in counts["queues"]}
    both = {"namespace": server.namespace or DEFAULT_NAMESPACE, "server": info}
    return Details(
        {**both, "statistics": counts},
        shown={**both, "statistics": {**counts, **by_status}},
    )
