"""`lightningstore delete`: deletes finished rollouts with their spans."""

from __future__ import annotations

import sys
from typing import Any

import click
from lightningstore.service.cli import connection, output, units
from lightningstore.service.cli.connection import connected
from lightningstore.service.cli.enqueue import ids_given, parts
from lightningstore.service.cli.output import Output
from lightningstore.service.cli.views import resolve, rollouts_argument
from lightningstore.v1 import rollout_pb2

#: Rollouts of one call.
_ITEMS = 1000


def _delete(rollout_ids: tuple[str, ...], *, yes: bool, **given: Any) -> None:
    """Delete finished rollouts with their attempts and spans.

    - reads ids from stdin. A rollout that has not finished is an error: cancel it first. Then none of the
    thousand rollouts of its call is deleted. Exit code 1 if a rollout does not exist.
    """
    shown = Output(given)
    results: dict[str, str] = {}
    with connected(connection.take(given)) as server:
        ids = [resolve(server, rollout_id) for rollout_id in ids_given(rollout_ids)]
        ids = list(dict.fromkeys(ids))
        if ids and not yes:
            _confirm(len(ids))
        for part in parts(ids, _ITEMS):
            request = rollout_pb2.DeleteRolloutsRequest(rollout_ids=part)
            answer = server.call(request, connection.REPEATED_SECONDS)
            results.update(dict.fromkeys(answer.deleted_rollout_ids, "deleted"))
            results.update(dict.fromkeys(answer.missing_rollout_ids, "missing"))
            results.update(dict.fromkeys(answer.kept_rollout_ids, "kept"))
            if shown.format not in output.DOCUMENTS:
                for rollout_id in part:
                    click.echo(f"{rollout_id}\t{results[rollout_id]}")
    if shown.format in output.DOCUMENTS:
        shown.json([{"rollout_id": i, "result": results[i]} for i in ids])
    failures = []
    for result, reason in (
        ("missing", "does not exist"),
        ("kept", "was not deleted: it was reopened meanwhile, or is damaged"),
    ):
        failed = [i for i in ids if results[i] == result]
        if failed:
            more = f" (and {units.count(len(failed) - 1, 'more rollout')})" if failed[1:] else ""
            failures.append(f"rollout {failed[0]!r}{more} {reason}")
    if failures:
        raise click.ClickException("; ".join(failures))


def _confirm(count: int) -> None:
    """Ask a person at a terminal. Raises click.UsageError without one, click.ClickException for no."""
    if not sys.stdin.isatty():
        raise click.UsageError("--yes is required when stdin is not a terminal")
    question = f"Delete {units.count(count, 'rollout')} with all spans? This cannot be undone."
    if not click.confirm(question, err=True):
        raise click.ClickException("nothing was deleted")


delete = click.Command(
    "delete",
    callback=_delete,
    help=_delete.__doc__,
    params=[
        rollouts_argument(),
        click.Option(["-y", "--yes"], is_flag=True, help="Do not ask for confirmation."),
        *output.options(),
        *connection.options(),
    ],
)
