"""Commands that move rollouts on: claim, report, wait, cancel, retry."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import click
from lightningstore.service.cli import connection, ids, output, units
from lightningstore.service.cli.connection import Connection, connected, opened
from lightningstore.service.cli.enqueue import Seconds, ids_given, parts
from lightningstore.service.cli.outcomes import FINISHED
from lightningstore.service.cli.output import Output
from lightningstore.service.cli.queues import queues_option
from lightningstore.service.cli.rewards import exact_reward
from lightningstore.service.cli.rollouts import MODES, mode_number
from lightningstore.service.cli.views import (
    LATEST,
    plain,
    resolve,
    rollout_argument,
    rollouts_argument,
)
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2

#: Exit codes of `wait`.
FAILED, CANCELLED, TIMED_OUT = 3, 4, 124
#: Rollouts of one call.
_ITEMS = 1000


def _command(
    name: str, function: Callable[..., None], *parameters: click.Parameter
) -> click.Command:
    return click.Command(
        name,
        callback=function,
        help=function.__doc__,
        params=[*parameters, *output.options(), *connection.options()],
    )


def _print(shown: Output, server: Connection, rollouts: Sequence[Any]) -> None:
    """Print rollouts with their status: documents, or a line each."""
    if shown.format in output.DOCUMENTS:
        shown.json([_record(server, rollout) for rollout in rollouts])
        return
    for rollout in rollouts:
        click.echo(f"{rollout.rollout_id}\t{plain(rollout)['status']}")


def _record(server: Connection, rollout: Any) -> dict[str, Any]:
    """Return a rollout as JSON values, with the reward of its latest attempt."""
    return {**plain(rollout), "reward": exact_reward(server, rollout.latest_attempt)}


def _claim(
    limit: int,
    wait: float,
    mode: tuple[str, ...],
    queues: tuple[str, ...],
    worker: str,
    **given: Any,
) -> None:
    """Claim rollouts from the queue, each with a new attempt, or the one of --id.

    Prints rollout, attempt and input. `report` ends an attempt. Exit code 1 if there was nothing to claim.
    """
    shown = Output(given)
    rollout_id = given.pop("id")
    with connected(connection.take(given)) as server:
        request_id = uuid.uuid4().hex
        if rollout_id:
            request = claim_pb2.StartAttemptRequest(
                rollout_id=resolve(server, rollout_id), worker_id=worker, request_id=request_id
            )
            claimed = [server.call(request).rollout]
        else:
            dequeue = claim_pb2.DequeueRolloutsRequest(
                limit=limit,
                modes=[mode_number(word) for word in mode],
                worker_id=worker,
                request_id=request_id,
                queues=queues,
            )
            dequeue.wait.FromNanoseconds(round(wait * 1e9))
            claimed = list(server.call(dequeue, connection.CALL_SECONDS + wait).rollouts)
    if not claimed:
        raise click.ClickException("the queue holds nothing to claim")
    if shown.format in output.DOCUMENTS:
        shown.json([{**plain(rollout), "reward": None} for rollout in claimed])
        return
    for rollout in claimed:
        text = " ".join(rollout.input_json.decode(errors="replace").split())
        click.echo(f"{rollout.rollout_id}\t{rollout.latest_attempt.attempt_id}\t{text}")


claim = _command(
    "claim",
    _claim,
    click.Option(
        ["-L", "--limit"],
        type=click.IntRange(1, units.MAX_INT32),
        default=1,
        help="Maximum number. Default: 1.",
    ),
    click.Option(
        ["--wait"],
        type=Seconds(),
        default=0.0,
        help="Time to wait for a rollout: 90, 30s, 5m. Default: 0.",
    ),
    click.Option(["--mode"], multiple=True, type=click.Choice(MODES), help="Only these modes."),
    queues_option("Task queue to claim from; '' is the default queue. May be repeated."),
    click.Option(["--worker"], default="", metavar="ID", help="Id of the worker. Default: none."),
    click.Option(
        ["--id"], default="", metavar="ROLLOUT", help="Claim this rollout, wherever it stands."
    ),
)


def _report(rollout_id: str, attempt_id: str, status: str, **given: Any) -> None:
    """Report the outcome of an attempt, with its reward and scores. ATTEMPT may be `latest`.

    The reward and the scores of a finished attempt can be changed by reporting the same outcome again.
    """
    shown = Output(given)
    failure = {name: given.pop(name) for name in ("type", "message")}
    retryable, reward, scores = (given.pop(name) for name in ("retryable", "reward", "score"))
    if status != "failed" and (any(failure.values()) or retryable is not None):
        raise click.UsageError("--type, --message and --no-retry go with the status failed")
    with connected(connection.take(given)) as server:
        rollout_id = resolve(server, rollout_id)
        request = attempt_pb2.UpdateAttemptRequest(request_id=uuid.uuid4().hex)
        request.attempt.rollout_id, request.attempt.attempt_id = rollout_id, attempt_id
        request.attempt.status = attempt_pb2.AttemptStatus.Value(f"ATTEMPT_STATUS_{status.upper()}")
        if any(failure.values()) or retryable is not None:
            request.attempt.failure.MergeFrom(attempt_pb2.Failure(**failure, retryable=retryable))
        if reward is not None:
            request.attempt.reward = reward
        _add_scores(request, scores)
        server.call(request)
        _print(shown, server, [_get(server, rollout_id)])


def _add_scores(request: attempt_pb2.UpdateAttemptRequest, scores: Sequence[str]) -> None:
    """Set the scores that are given as NAME=VALUE; those of other names stay."""
    if not scores:
        return
    paths = request.update_mask.paths
    paths.extend(field.name for field, _ in request.attempt.ListFields())
    for named in ("rollout_id", "attempt_id"):
        paths.remove(named)
    for text in scores:
        name, _, value = text.rpartition("=")
        try:
            number = float(value)
        except ValueError:
            name = ""
        if not name:
            raise click.UsageError(f"--score must be NAME=NUMBER, not {text!r}")
        request.attempt.scores[name] = number
        paths.append(f"scores.{name}")


report = _command(
    "report",
    _report,
    rollout_argument(),
    click.Argument(["attempt_id"], metavar="ATTEMPT"),
    click.Argument(["status"], type=click.Choice(["running", "succeeded", "failed"])),
    click.Option(
        ["--reward"],
        type=float,
        metavar="X",
        help="Reward of the attempt, larger is better. Default: unchanged.",
    ),
    click.Option(
        ["--score"],
        multiple=True,
        metavar="NAME=X",
        help="Another score of this name. Those of other names stay. May be repeated.",
    ),
    click.Option(["--type"], default="", metavar="TEXT", help="Class of the failure."),
    click.Option(["--message"], default="", metavar="TEXT", help="What went wrong."),
    click.Option(
        ["--retry/--no-retry", "retryable"],
        default=None,
        help="Whether another attempt could succeed. Default: --retry.",
    ),
)


def _get(server: Connection, rollout_id: str) -> Any:
    return server.call(rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)).rollout


def _cancel(rollout_ids: tuple[str, ...], **given: Any) -> None:
    """Cancel rollouts: remove them from the queue, and ask their runners to stop.

    - reads ids from stdin. Rollouts that have finished stay as they are. All of a thousand or none of them are
    cancelled: an unknown id fails the call.
    """
    shown = Output(given)
    cancelled: list[Any] = []
    with connected(connection.take(given)) as server:
        named = [resolve(server, rollout_id) for rollout_id in ids_given(rollout_ids)]
        for part in parts(named, _ITEMS):
            request = rollout_pb2.CancelRolloutsRequest(
                rollout_ids=part, request_id=uuid.uuid4().hex
            )
            cancelled += server.call(request).rollouts
        _print(shown, server, cancelled)


cancel = _command("cancel", _cancel, rollouts_argument())


def _retry(rollout_ids: tuple[str, ...], **given: Any) -> None:
    """Put finished rollouts at the tail of the queue again, for another attempt.

    - reads ids from stdin. Rollouts that have not finished are an error: cancel them first.
    """
    shown = Output(given)
    retried = []
    with connected(connection.take(given)) as server:
        for rollout_id in ids_given(rollout_ids):
            found = _get(server, resolve(server, rollout_id))
            status = plain(found)["status"]
            if status not in FINISHED:
                raise click.ClickException(
                    f"rollout {found.rollout_id!r} is {status}: only finished rollouts are retried"
                )
            request = rollout_pb2.UpdateRolloutRequest(request_id=uuid.uuid4().hex)
            request.rollout.rollout_id = found.rollout_id
            request.rollout.status = rollout_pb2.ROLLOUT_STATUS_QUEUING
            retried.append(server.call(request).rollout)
        _print(shown, server, retried)


retry = _command("retry", _retry, rollouts_argument())


def _wait(
    rollout_ids: tuple[str, ...],
    group: tuple[str, ...],
    count: int | None,
    timeout: float | None,
    **given: Any,
) -> None:
    """Wait until rollouts have finished, and print each when it has.

    - reads ids from stdin; ROLLOUT may be `latest`. Exit code 0 if all have succeeded, 3 if one has failed, 4 if
    one was cancelled, 124 if --timeout has passed first.
    """
    shown = Output(given)
    if not rollout_ids and not group:
        raise click.UsageError("ROLLOUT or --group is wanted")
    named = ids_given(rollout_ids)
    if not named and not group:
        raise click.ClickException("no ids on stdin")
    options = connection.take(given)
    if LATEST in named:
        with connected(options) as server:
            named = [resolve(server, rollout_id) for rollout_id in named]
    statuses = set()
    records = []
    with opened(options) as store, connected(options) as server:
        stream = store.wait_for_rollouts(named, group_ids=group, min_count=count, timeout=timeout)
        for rollout in stream:
            statuses.add(rollout.status.value)
            if shown.format in output.DOCUMENTS and shown.format != "jsonl":
                records.append(_record(server, rollout.message))
            else:
                _print(shown, server, [rollout.message])
        still_open = list(stream.open_rollout_ids or ())
        finished = stream.finished_count or 0
    if shown.format in output.DOCUMENTS and shown.format != "jsonl":
        shown.json(records)
    if still_open and finished < (count or finished + 1):
        click.echo(
            f"lightningstore: {units.count(len(still_open), 'rollout')} still open after "
            f"{units.span(timeout or 0)}",
            err=True,
        )
        raise SystemExit(TIMED_OUT)
    raise SystemExit(
        FAILED if "failed" in statuses else CANCELLED if "cancelled" in statuses else 0
    )


wait = _command(
    "wait",
    _wait,
    click.Argument(["rollout_ids"], metavar="[ROLLOUT...]", nargs=-1, shell_complete=ids.rollouts),
    click.Option(
        ["--group"],
        multiple=True,
        metavar="ID",
        help="All rollouts that are in this group now. May be repeated.",
    ),
    click.Option(
        ["--count"],
        type=click.IntRange(1, units.MAX_INT64),
        help="End when this many have finished. Default: all.",
    ),
    click.Option(
        ["--timeout"], type=Seconds(), help="Maximum time: 90, 30s, 5m. Default: unlimited."
    ),
)
