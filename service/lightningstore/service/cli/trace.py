"""`lightningstore trace`: the spans of an attempt as a tree on the terminal, or as a picture in a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from lightningstore.service.cli.views import DEADLINE, View, _view, plain
from lightningstore.service.traces import timeline, waterfall
from lightningstore.service.traces.timeline import Line, Timeline, duration_text, printable
from lightningstore.v1 import attempt_pb2, rollout_pb2, span_pb2
from rich.text import Text
from rich.tree import Tree

#: Lines of a stack trace that are shown, from its end.
STACK_LINES = 8
STYLES = {"call": "bold blue", "agent": "magenta", "reward": "yellow", "lost": "dim italic"}


@_view("trace", "rollout_id")
def trace(view: View, rollout_id: str, attempt: str, output: Path | None) -> None:
    """Show the trace of a rollout: nesting, times, tokens, rewards, errors.

    With --output FILE.svg or FILE.html as a picture that needs nothing else.
    """
    if output is not None and output.suffix not in (".svg", ".html"):
        raise click.ClickException(f"--output: a name that ends in .svg or .html, not {output}")
    found = view.stub.GetRollout(
        rollout_pb2.GetRolloutRequest(rollout_id=rollout_id), timeout=DEADLINE
    ).rollout
    if not found.attempt_count:
        raise click.ClickException(f"rollout {rollout_id!r} has no attempt yet")
    record = view.stub.GetAttempt(
        attempt_pb2.GetAttemptRequest(rollout_id=rollout_id, attempt_id=attempt), timeout=DEADLINE
    ).attempt
    request = span_pb2.QuerySpansRequest(rollout_id=rollout_id, attempt_id=record.attempt_id)
    spans = [
        pair
        for reply in view.stub.QuerySpans(request, timeout=DEADLINE * 6)
        for batch in reply.batches
        for pair in zip(batch.sequence_ids, batch.spans, strict=True)
    ]
    shown = timeline.read(spans)
    title = printable(f"{rollout_id} {record.attempt_id}")
    facts = _facts(found, record, shown)
    if output is not None:
        _write(output, title, facts, shown)
    elif view.as_json:
        ids = {"rollout_id": rollout_id, "attempt_id": record.attempt_id}
        view.json({**ids, "lines": [_plain(line) for line in shown.lines]})
    else:
        view.console.print(_tree(title, facts, shown))


trace.params += [
    click.Option(["--attempt"], default="latest", show_default=True, help="Id, or latest."),
    click.Option(
        ["--output", "-o"],
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write a picture, .svg or .html, instead of printing.",
    ),
]


def _facts(
    rollout: rollout_pb2.Rollout, attempt: attempt_pb2.Attempt, shown: Timeline
) -> list[tuple[str, str]]:
    """Return what is told about the whole, by name."""
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
    if "failure" in told:
        failure = told["failure"]
        words = [failure[key] for key in ("type", "message") if key in failure]
        facts.append(("failure", timeline.cut(printable(": ".join(words)))))
    return facts


def _write(output: Path, title: str, facts: list[tuple[str, str]], shown: Timeline) -> None:
    if output.suffix == ".svg":
        text = waterfall.svg(title, shown)
    else:
        text = waterfall.html(title, facts, shown)
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(str(error)) from None
    click.echo(f"{output}: {len(shown.lines)} lines")


def _tree(title: str, facts: list[tuple[str, str]], shown: Timeline) -> Tree:
    head = Text(title, style="bold")
    head.append("\n" + ", ".join(f"{name} {value}" for name, value in facts), style="dim not bold")
    root = Tree(head, guide_style="dim")
    above = [root]
    for line in shown.lines:
        del above[line.depth + 1 :]
        above.append(above[line.depth].add(_label(line)))
    return root


def _label(line: Line) -> Text:
    label = Text(timeline.cut(line.name), style=STYLES.get(line.kind, ""))
    label.append(f"  +{duration_text(line.start)}, {duration_text(line.duration)}", "dim not bold")
    for note in line.notes:
        label.append(f"  {note}", "yellow not bold" if note.startswith("reward") else "not bold")
    if line.error:
        label.append(f"  {line.error}", "red not bold")
    for failure in line.exceptions:
        if str(failure) != line.error:
            label.append(f"\n{timeline.cut(str(failure))}", "red not bold")
        stack = failure.stack_trace.splitlines()[-STACK_LINES:]
        label.append("".join(f"\n{text}" for text in stack), "dim not bold")
    return label


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
