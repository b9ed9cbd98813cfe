"""`lightningstore pause` and `resume`, and the options for task queues and labels."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import click
from lightningstore.service.cli import connection, output, units
from lightningstore.service.cli.connection import connected
from lightningstore.service.cli.output import Output
from lightningstore.service.cli.views import plain
from lightningstore.v1 import claim_pb2


def _labels(_context: object, _option: object, pairs: tuple[str, ...]) -> dict[str, str]:
    """Return labels by key. Raises click.BadParameter for what is not KEY=VALUE."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.BadParameter(f"{pair!r} must be KEY=VALUE")
        found[key] = value
    return found


def label_option(text: str) -> click.Option:
    """Return the option for labels, which are given as a dictionary."""
    return click.Option(
        ["--label", "labels"], multiple=True, callback=_labels, metavar="KEY=VALUE", help=text
    )


def queues_option(text: str) -> click.Option:
    """Return the option for several task queues."""
    return click.Option(["--queue", "queues"], multiple=True, metavar="NAME", help=text)


def _print(shown: Output, answer: Any, pause: claim_pb2.ClaimPause | None, what: str) -> None:
    if shown.format in output.DOCUMENTS:
        shown.json(plain(answer))
        return
    running = units.count(answer.running_attempt_count, "attempt")
    since = f" since {pause.start_time.ToJsonString()}" if pause is not None else ""
    reason = f" ({pause.reason})" if pause is not None and pause.reason else ""
    click.echo(f"{what}{since}{reason}; {running} running")


def _pause(reason: str, **given: Any) -> None:
    """Pause claims: no attempt begins until `resume`. Running attempts continue."""
    shown = Output(given)
    with connected(connection.take(given)) as server:
        request = claim_pb2.PauseClaimsRequest(reason=reason, request_id=uuid.uuid4().hex)
        answer = server.call(request)
    _print(shown, answer, answer.pause, "claims are paused")


def _resume(**given: Any) -> None:
    """Resume claims after `pause`. Runners that wait get rollouts at once."""
    shown = Output(given)
    with connected(connection.take(given)) as server:
        answer = server.call(claim_pb2.ResumeClaimsRequest(request_id=uuid.uuid4().hex))
    if answer.HasField("ended_pause"):
        _print(shown, answer, answer.ended_pause, "claims are resumed; they had been paused")
    else:
        _print(shown, answer, None, "claims were not paused")


def _command(
    name: str, function: Callable[..., None], *parameters: click.Parameter
) -> click.Command:
    params = [*parameters, *output.options(), *connection.options()]
    return click.Command(name, callback=function, help=function.__doc__, params=params)


pause = _command(
    "pause",
    _pause,
    click.Option(
        ["--reason"],
        default="",
        metavar="TEXT",
        help="Reason for the pause, shown by `status`. Default: none.",
    ),
)
resume = _command("resume", _resume)
