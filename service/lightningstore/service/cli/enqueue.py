"""`lightningstore enqueue`: rollouts out of arguments, files and stdin into the queue."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click
from lightningstore.service.cli import connection, output, units
from lightningstore.service.cli.connection import connected
from lightningstore.service.cli.output import Output
from lightningstore.service.cli.queues import label_option
from lightningstore.service.cli.views import enum_words, plain
from lightningstore.v1 import attempt_pb2, rollout_pb2

_LINES = (".jsonl", ".ndjson")
#: Rollouts of one call, and the bytes of their inputs: well below the limits of a server.
_ITEMS, _BYTES = 1000, 8 << 20
_RETRYABLE = ("failed", "timeout", "unresponsive")


def _enqueue(inputs: tuple[str, ...], *, jsonl: bool, **given: Any) -> None:
    """Put rollouts at the tail of the queue, and print their ids.

    INPUT is the task as JSON. @FILE is a file of JSON and - is stdin; with --jsonl, or from a file in .jsonl, each
    line is a rollout of its own. Every 1,000 rollouts are one call, which stores all or none of them.

    \b
    lightningstore enqueue '{"question": 2}' --mode train
    lightningstore enqueue @tasks.jsonl --group night-1 | lightningstore wait -
    """  # noqa: D301
    shown = Output(given)
    server_options = connection.take(given)
    template = _template(given)
    given_id: str = given["id"]
    if given_id and (len(inputs) > 1 or jsonl):
        raise click.UsageError("--id names one rollout: give one INPUT")
    if given_id:
        template.rollout_id = given_id
    number = 0
    records = []
    with connected(server_options) as server:
        for texts in _batches(_texts(inputs, jsonl=jsonl)):
            request = rollout_pb2.EnqueueRolloutsRequest(request_id=uuid.uuid4().hex)
            for text in texts:
                request.rollouts.add().CopyFrom(template)
                request.rollouts[-1].input_json = text
            for rollout in server.call(request, connection.REPEATED_SECONDS).rollouts:
                number += 1
                if shown.format in output.DOCUMENTS:
                    records.append({**plain(rollout), "reward": None})
                else:
                    click.echo(rollout.rollout_id)
    if shown.format in output.DOCUMENTS:
        shown.json(records)
    elif shown.is_terminal:
        click.echo(f"{units.count(number, 'rollout')} enqueued", err=True)


def _template(given: dict[str, Any]) -> rollout_pb2.RolloutSpec:
    """Return what all rollouts of the command have in common."""
    spec = rollout_pb2.RolloutSpec(
        priority=given["priority"],
        group_id=given["group"],
        resources_id=given["resources"],
        metadata_json=_metadata(given["metadata"]),
        queue=given["queue"],
        labels=given["labels"],
    )
    if given["mode"]:
        spec.mode = rollout_pb2.RolloutMode.Value(f"ROLLOUT_MODE_{given['mode'].upper()}")
    spec.config.max_attempts = given["max_attempts"]
    for word in given["retry_on"]:
        spec.config.retry_condition.append(
            attempt_pb2.AttemptStatus.Value(f"ATTEMPT_STATUS_{word.upper()}")
        )
    for name in ("timeout", "unresponsive_timeout"):
        if given[name] is not None:
            getattr(spec.config, name).FromNanoseconds(round(given[name] * 1e9))
    return spec


def _metadata(pairs: Sequence[str]) -> bytes:
    """Return the metadata of KEY=VALUE pairs; a value that is not JSON is a text."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"--metadata {pair!r}: KEY=VALUE is wanted")
        try:
            found[key] = json.loads(text)
        except ValueError:
            found[key] = text
    return json.dumps(found, ensure_ascii=False).encode() if found else b""


def _texts(inputs: Sequence[str], *, jsonl: bool) -> Iterator[bytes]:
    """Yield the JSON of each rollout. Raises click.ClickException for what is not JSON."""
    for given in inputs:
        if given == "-":
            yield from _documents(sys.stdin.buffer, "stdin", jsonl=jsonl)
        elif given.startswith("@"):
            path = Path(given[1:])
            try:
                with path.open("rb") as file:
                    yield from _documents(file, str(path), jsonl=jsonl or path.suffix in _LINES)
            except OSError as error:
                raise click.UsageError(f"{path}: {error.strerror}") from None
        else:
            name, hint = f"INPUT {given!r:.60}", "write a text as '\"text\"'"
            yield _checked(given.encode(), name, hint, click.UsageError)


def _documents(file: Any, name: str, *, jsonl: bool) -> Iterator[bytes]:
    if not jsonl:
        yield _checked(file.read().strip(), name, "--jsonl reads one rollout a line")
        return
    for number, line in enumerate(file, 1):
        if line.strip():
            yield _checked(
                line.strip(), f"{name}: line {number}", "one JSON value a line is wanted"
            )


def _checked(
    text: bytes, name: str, hint: str, kind: type[click.ClickException] = click.ClickException
) -> bytes:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise kind(f"{name} is not JSON ({error}); {hint}") from None
    return text


def _batches(texts: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Yield the texts in lists of as many as one call takes."""
    batch: list[bytes] = []
    size = 0
    for text in texts:
        if batch and (len(batch) == _ITEMS or size + len(text) > _BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += len(text)
    if batch:
        yield batch


def ids_given(values: Sequence[str]) -> list[str]:
    """Return the ids of the arguments; - stands for those on stdin, the first word of each line."""
    found: list[str] = []
    for value in values:
        if value == "-":
            found += [words[0] for line in sys.stdin if (words := line.split())]
        else:
            found.append(value)
    return found


def parts(items: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield a list in parts."""
    left = iter(items)
    while part := list(islice(left, size)):
        yield part


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A duration: 90, 30s, 5m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds."""
        try:
            return value if isinstance(value, float) else units.seconds_of(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


enqueue = click.Command(
    "enqueue",
    callback=_enqueue,
    help=_enqueue.__doc__,
    params=[
        click.Argument(["inputs"], metavar="INPUT...", nargs=-1, required=True),
        click.Option(["--jsonl"], is_flag=True, help="Read one rollout a line from @FILE and -."),
        click.Option(
            ["--mode"],
            type=click.Choice(enum_words(rollout_pb2.RolloutMode.keys(), "ROLLOUT_MODE_")),
            help="What the rollouts are for. Default: not set.",
        ),
        click.Option(["--group"], default="", metavar="ID", help="Group of the rollouts."),
        click.Option(
            ["--queue"],
            default="",
            metavar="NAME",
            help="Task queue of the rollouts. Default: the default queue.",
        ),
        label_option("Label of the rollouts. May be repeated."),
        click.Option(
            ["--priority"],
            type=click.IntRange(-units.MAX_INT32, units.MAX_INT32),
            default=0,
            help="Higher is claimed first. Default: 0.",
        ),
        click.Option(
            ["--resources"],
            default="",
            metavar="ID",
            help="Resources that the agent works with; `latest`: the latest ones at each claim. Default: those that are the latest now.",
        ),
        click.Option(
            ["--metadata"],
            multiple=True,
            metavar="KEY=VALUE",
            help="Metadata; VALUE is JSON or else a text. May be repeated.",
        ),
        click.Option(
            ["--id"], default="", metavar="ID", help="Id of the rollout. Default: random."
        ),
        click.Option(
            ["--max-attempts"],
            type=click.IntRange(1, units.MAX_INT32),
            default=1,
            help="Maximum number of attempts, retries included. Default: 1.",
        ),
        click.Option(
            ["--retry-on"],
            multiple=True,
            type=click.Choice(_RETRYABLE),
            help="Outcome of an attempt that is retried. May be repeated. Default: none.",
        ),
        click.Option(
            ["--timeout"],
            type=Seconds(),
            help="Maximum duration of an attempt: 90, 30s, 5m. Default: unlimited.",
        ),
        click.Option(
            ["--unresponsive-timeout"],
            type=Seconds(),
            help="Maximum time without heartbeat or span. Default: unlimited.",
        ),
        *output.options(),
        *connection.options(),
    ],
)
