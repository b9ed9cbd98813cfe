"""`lightningstore trace`: the spans of an attempt as a tree on the terminal, or as a picture in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import click
from lightningstore.service.cli import connection, units
from lightningstore.service.cli.connection import connected
from lightningstore.service.cli.output import Output, terminal_width
from lightningstore.service.cli.views import (
    check_attempted,
    failure_text,
    plain,
    resolve,
    rollout_argument,
)
from lightningstore.service.traces import timeline, waterfall
from lightningstore.service.traces.texts import cut_end, duration_text, printable
from lightningstore.service.traces.timeline import Line, Timeline
from lightningstore.v1 import attempt_pb2, rollout_pb2, span_pb2

#: Lines of a stack trace that are shown, from its end.
STACK_LINES = 8
#: Its last lines, which tell it from others: the innermost call and the exception.
ORIGIN_LINES = 3
COLOURS = {"call": "blue", "agent": "magenta", "reward": "yellow"}
#: A piece of a line, and its colour.
Part = tuple[str, str | None]


def _trace(
    rollout_id: str, attempt: str, target: Path | None, *, replace: bool, **given: Any
) -> None:
    """Show the trace of a rollout: nesting, times, tokens, rewards, errors. ROLLOUT may be `latest`.

    With --output FILE.svg or FILE.html as a picture that needs nothing else.
    """
    if target is not None and target.suffix not in (".svg", ".html"):
        raise click.UsageError(
            f"--output: a name that ends in .svg or .html is wanted, not {target}; --json prints JSON"
        )
    if target is not None and target.exists() and not replace:
        raise click.ClickException(f"{target} exists already; --replace replaces it")
    shown = Output(given)
    with connected(connection.take(given)) as server:
        rollout_id = resolve(server, rollout_id)
        found = server.call(rollout_pb2.GetRolloutRequest(rollout_id=rollout_id)).rollout
        check_attempted(found)
        wanted = attempt_pb2.GetAttemptRequest(rollout_id=rollout_id, attempt_id=attempt)
        record = server.call(wanted).attempt
        request = span_pb2.QuerySpansRequest(rollout_id=rollout_id, attempt_id=record.attempt_id)
        spans = [
            pair
            for reply in server.stream(request)
            for batch in reply.batches
            for pair in zip(batch.sequence_ids, batch.spans, strict=True)
        ]
    lines = timeline.read(spans)
    title = printable(f"{rollout_id} {record.attempt_id}")
    facts = _facts(found, record, lines)
    if target is not None:
        _write(target, title, facts, lines)
    elif shown.format == "json":
        ids = {"rollout_id": rollout_id, "attempt_id": record.attempt_id}
        shown.json({**ids, "lines": [_plain(line) for line in lines.lines]})
    else:
        cut = shown.is_terminal and shown.format != "wide"
        width = terminal_width() if cut else None
        for text in _tree(title, facts, lines, width):
            click.echo(text, color=shown.is_coloured)


trace = click.Command(
    "trace",
    callback=_trace,
    help=_trace.__doc__,
    params=[
        rollout_argument(),
        click.Option(
            ["--attempt"],
            default="latest",
            metavar="ID",
            help="Attempt by its id. Default: latest.",
        ),
        click.Option(
            ["-o", "--output", "target"],
            type=click.Path(path_type=Path, dir_okay=False),
            help="Write a picture, .svg or .html, instead of printing.",
        ),
        click.Option(
            ["--replace"], is_flag=True, help="Replace the file of --output if it exists."
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        click.Option(["--wide"], is_flag=True, help="Cut no line at the edge of the terminal."),
        click.Option(
            ["--color/--no-color"],
            default=None,
            help="Colour the output. Default: on a terminal, unless NO_COLOR is set.",
        ),
        *connection.options(),
    ],
)


def _facts(
    rollout: rollout_pb2.Rollout, attempt: attempt_pb2.Attempt, shown: Timeline
) -> list[tuple[str, str]]:
    """Return facts about the whole trace, by name."""
    told = plain(attempt)
    facts = [
        ("rollout", plain(rollout)["status"]),
        ("attempt", f"{attempt.sequence_number} of {rollout.attempt_count}, {told['status']}"),
        ("spans", f"{sum(line.kind != 'lost' for line in shown.lines):,}"),
        ("duration", duration_text(shown.duration)),
    ]
    facts += [
        (name.replace("_", " "), f"{total:,}")
        for name in ("prompt_tokens", "response_tokens")
        if (total := shown.total(name)) is not None
    ]
    rewards = [line.rewards[0][1] for line in shown.lines if line.rewards]
    if rewards:
        facts.append(("rewards", ", ".join(f"{value:g}" for value in rewards[:20])))
    errors = sum(bool(line.error) for line in shown.lines)
    if errors:
        facts.append(("errors", str(errors)))
    if failure := failure_text(attempt):
        facts.append(("failure", timeline.cut(failure)))
    return facts


def _write(output: Path, title: str, facts: list[tuple[str, str]], shown: Timeline) -> None:
    if output.suffix == ".svg":
        text = waterfall.svg(title, shown)
    else:
        text = waterfall.html(title, facts, shown)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"{output}: {error.strerror or error}") from None
    click.echo(f"{output}: {units.count(len(shown.lines), 'line')}")


def _tree(
    title: str, facts: list[tuple[str, str]], shown: Timeline, width: int | None
) -> Iterator[str]:
    """Yield the lines of a tree, each with what hangs on it drawn before its name."""
    yield click.style(title, bold=True)
    yield ", ".join(f"{name} {value}" for name, value in facts)
    lines = shown.printable().lines
    repeated = _repeated(lines)
    for at, (line, (first, further)) in enumerate(zip(lines, _guides(lines), strict=True)):
        for number, parts in enumerate(_label(line, repeated[at])):
            guide = further if number else first
            text = guide + "".join(part for part, _ in parts)
            yield _coloured(text if width is None else cut_end(text, width), len(guide), parts)


def _guides(lines: Sequence[Line]) -> list[tuple[str, str]]:
    """Return what is drawn before the first line of each span, and before its further ones.

    That is whether the span, and each one above it, has a sibling below.
    """
    guides: list[tuple[str, str]] = []
    more: dict[int, bool] = {}
    for line in reversed(lines):
        above = "".join("│   " if more.get(depth) else "    " for depth in range(line.depth))
        own = ("├── ", "│   ") if more.get(line.depth) else ("└── ", "    ")
        guides.append((above + own[0], above + own[1]))
        more = {depth: value for depth, value in more.items() if depth < line.depth}
        more[line.depth] = True
    return guides[::-1]


def _origin(failure: timeline.Failure) -> tuple[str, ...]:
    """Return the end of a stack trace, which all spans that an exception passes through have in common."""
    return tuple(failure.stack_trace.splitlines()[-ORIGIN_LINES:])


def _repeated(lines: Sequence[Line]) -> list[set[tuple[str, ...]]]:
    """Return for each line the stack traces that a span below it shows: an exception passes through all spans above."""
    below: dict[int, set[tuple[str, ...]]] = {}
    found = []
    for line in reversed(lines):
        own = below.pop(line.depth + 1, set())
        found.append(own)
        stacks = {_origin(failure) for failure in line.exceptions}
        below.setdefault(line.depth, set()).update(own, stacks)
    return found[::-1]


def _label(line: Line, repeated: AbstractSet[tuple[str, ...]] = frozenset()) -> list[list[Part]]:
    """Return the lines of a span: its own, and those of the exceptions that it noted.

    A stack trace that is shown below, in `repeated`, is left out.
    """
    parts: list[Part] = [(timeline.cut(line.name), COLOURS.get(line.kind))]
    parts.append((f"  +{duration_text(line.start)}, {duration_text(line.duration)}", None))
    parts += [(f"  {note}", "yellow" if note.startswith("reward") else None) for note in line.notes]
    if line.error:
        parts.append((f"  {line.error}", "red"))
    lines = [parts]
    for failure in line.exceptions:
        if str(failure) != line.error:
            lines.append([(timeline.cut(str(failure)), "red")])
        if _origin(failure) not in repeated:
            stack = failure.stack_trace.splitlines()[-STACK_LINES:]
            lines += [[(text, None)] for text in stack]
    return lines


def _coloured(text: str, start: int, parts: Sequence[Part]) -> str:
    """Return a line, which may be cut, with the colours of its parts."""
    done = text[:start]
    for part, colour in parts:
        piece = text[start : start + len(part)]
        done += click.style(piece, fg=colour) if colour and piece else piece
        start += len(part)
    return done


def _plain(line: Line) -> dict[str, Any]:
    told: dict[str, Any] = line._asdict()
    told["start_ns"], told["duration_ns"] = told.pop("start"), told.pop("duration")
    told["rewards"], told["details"] = dict(line.rewards), _grouped(line.details)
    told["exceptions"] = [failure._asdict() for failure in line.exceptions]
    return told


def _grouped(details: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return details by name; of several with one name (events, links) a list."""
    found: dict[str, Any] = {}
    for name, value in details:
        if name not in found:
            found[name] = value
        elif isinstance(found[name], list):
            found[name].append(value)
        else:
            found[name] = [found[name], value]
    return found
