"""Looks at a running server: tables for people, JSON for machines."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import click
import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from lightningstore.service.cli.connection import SECURITY, connect, options
from lightningstore.service.security.masking import mask_keys
from lightningstore.service.traces.timeline import printable
from lightningstore.v1 import (
    attempt_pb2,
    resources_pb2,
    rollout_pb2,
    span_pb2,
    statistics_pb2,
    worker_pb2,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

DEADLINE = 10.0
EMPTY = "–"
#: Cells of up to this many characters are not wrapped.
SHORT = 14
COLORS = {"succeeded": "green", "failed": "red", "cancelled": "magenta", "running": "cyan"}
_ENUM_NAMES = {
    "status": ("ROLLOUT_STATUS_", "ATTEMPT_STATUS_", "WORKER_STATUS_", "STATUS_CODE_"),
    "mode": ("ROLLOUT_MODE_",),
    "durability": ("DURABILITY_",),
}


_INT64 = FieldDescriptor.CPPTYPE_INT64
_NUMBERS = {
    field.name
    for file in (attempt_pb2, rollout_pb2, span_pb2, statistics_pb2)
    for message in file.DESCRIPTOR.message_types_by_name.values()
    for field in message.fields
    if field.cpp_type == _INT64
}


class View:
    """A connection to the server and a way to show what it says."""

    def __init__(self, address: str, *, as_json: bool, color: bool, **security: Any) -> None:
        self.channel, self.stub = connect(address, **security)
        self.as_json = as_json
        self.console = Console(no_color=not color, highlight=False)

    def json(self, value: Any) -> None:
        """Print one JSON document."""
        click.echo(json.dumps(value, indent=2, ensure_ascii=False))

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
        """Print a table; columns in which nobody has a value are left out, short ones keep to a line."""
        cells = [[_cell(value) for value in row] for row in rows]
        table = Table(title=title, title_justify="left", header_style="bold", box=SIMPLE_HEAD)
        shown = [n for n in range(len(columns)) if n < 2 or any(row[n] != EMPTY for row in cells)]
        for n, name in enumerate(columns):
            if n in shown:
                longest = max((Text.from_markup(row[n]).cell_len for row in cells), default=0)
                whole = n == 0 or longest <= SHORT
                table.add_column(name, overflow="fold", no_wrap=n == 0, min_width=longest * whole)
        for row in cells:
            table.add_row(*(row[n] for n in shown))
        self.console.print(table)


def plain(message: Message, *, show_secrets: bool = False) -> Any:
    """Return a message as JSON values: payloads as the JSON they are, enums as lower-case words."""
    if not show_secrets:
        mask_keys(message)
    return _tidy(MessageToDict(message, preserving_proto_field_name=True))


def _tidy(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        tidy = {}
        for key, item in value.items():
            if key.endswith("_json") and isinstance(item, str):  # not a resource of such a name
                text = base64.b64decode(item) or b"null"
                tidy[key[:-5]] = json.loads(text, parse_int=_integer)
            else:
                tidy[key] = _tidy(item, key)
        return tidy
    if isinstance(value, list):
        return [_tidy(item, name) for item in value]
    if name in _NUMBERS and isinstance(value, str):
        return int(value)  # protobuf's JSON writes 64-bit numbers as strings
    if name in _ENUM_NAMES and isinstance(value, str):
        for prefix in _ENUM_NAMES[name]:
            value = value.removeprefix(prefix)
        return value.lower()
    return value


def _integer(digits: str) -> int | str:
    """Return an integer; one of more digits than Python reads stays the text that it is."""
    try:
        return int(digits)
    except ValueError:
        return digits


def _cell(value: Any) -> str:
    if value is None or value == "":
        return EMPTY
    if isinstance(value, (dict, list)):
        text = json.dumps(value, ensure_ascii=False)
        return escape(printable(text if len(text) <= 80 else text[:77] + "…"))
    text = str(value)
    color = COLORS.get(text)
    return f"[{color}]{text}[/{color}]" if color else escape(printable(text))


def _time(value: Any) -> str:
    """Return a time as month, day and time of day, in UTC: what tells recent ones apart."""
    return str(value or "").replace("T", " ")[5:19]


def _view(name: str, *arguments: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command out of a function that shows something of a View."""

    def wrap(function: Callable[..., None]) -> click.Command:
        def run(address: str, *, as_json: bool, color: bool, **given: Any) -> None:
            security = {name: given.pop(name) for name in SECURITY}
            view = View(address, as_json=as_json, color=color, **security)
            try:
                function(view, **given)
            except grpc.RpcError as error:
                code, details = error.code(), error.details()
                if code == grpc.StatusCode.UNAVAILABLE:
                    raise click.ClickException(
                        f"no server answers at {address}: {details}"
                    ) from None
                raise click.ClickException(f"{details} ({code.name})") from None
            finally:
                view.channel.close()

        command = click.Command(name, callback=run, help=function.__doc__)
        command.params = [
            *(click.Argument([argument]) for argument in arguments),
            *options(),
            click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
            click.Option(["--color/--no-color"], default=True, help="Colour the table."),
            *getattr(function, "options", []),
        ]
        VIEWS.append(command)
        return command

    return wrap


VIEWS: list[click.Command] = []


def _pages(call: Callable[..., Any], request: Any, items: str) -> Iterator[Message]:
    """Yield what a list call returns on all its pages."""
    while True:
        page = call(request, timeout=DEADLINE)
        yield from getattr(page, items)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


@_view("status")
def status(view: View) -> None:
    """Show what the server is and how much it holds."""
    info = plain(view.stub.GetServerInfo(statistics_pb2.GetServerInfoRequest(), timeout=DEADLINE))
    counts = plain(view.stub.GetStatistics(statistics_pb2.GetStatisticsRequest(), timeout=DEADLINE))
    if view.as_json:
        view.json({"server": info, "statistics": counts})
        return
    limits = info.pop("limits")
    view.table("Server", ("", ""), [*info.items(), ("message limit", limits["message_bytes"])])
    rows: list[tuple[str, Any]] = []
    for noun in ("rollouts", "attempts", "workers"):
        rows += [(f"{noun} {one['status']}", one["count"]) for one in counts.pop(noun, [])]
    view.table("Statistics", ("", ""), [*rows, *counts.items()])


@_view("rollouts")
def rollouts(view: View, status: tuple[str, ...], limit: int, *, newest: bool) -> None:
    """List rollouts, newest first unless told otherwise."""
    statuses = [
        rollout_pb2.RolloutStatus.Value(f"ROLLOUT_STATUS_{word.upper()}") for word in status
    ]
    found = [plain(rollout) for rollout in _rollouts(view, statuses, limit, newest=newest)]
    if view.as_json:
        view.json(found)
        return
    columns = ("rollout", "status", "mode", "group", "tries", "worker", "enqueued", "input")
    view.table(
        f"{len(found)} rollouts",
        columns,
        (
            (
                r["rollout_id"],
                r["status"],
                r.get("mode"),
                r.get("group_id"),
                r.get("attempt_count", 0),
                r.get("latest_attempt", {}).get("worker_id"),
                _time(r["start_time"]),
                r["input"],
            )
            for r in found
        ),
    )


rollout_options = [
    click.Option(
        ["--status"],
        multiple=True,
        type=click.Choice([name[15:].lower() for name in rollout_pb2.RolloutStatus.keys()[1:]]),
        help="Only these statuses.",
    ),
    click.Option(["--limit"], default=50, show_default=True, help="Most rollouts to list."),
    click.Option(["--newest/--oldest"], default=True, help="Which end to start from."),
]
rollouts.params += rollout_options


def _rollouts(
    view: View, statuses: Sequence[Any], limit: int, *, newest: bool
) -> Iterator[rollout_pb2.Rollout]:
    request = rollout_pb2.ListRolloutsRequest(
        statuses=statuses,
        order_by="start_time desc" if newest else "",
        page_size=max(0, min(limit, 1000)),
    )
    while limit > 0:
        page = view.stub.ListRollouts(request, timeout=DEADLINE)
        yield from page.rollouts[:limit]
        limit -= len(page.rollouts)
        if not page.next_page_token:
            return
        request.page_token = page.next_page_token


@_view("rollout", "rollout_id")
def rollout(view: View, rollout_id: str) -> None:
    """Show one rollout with all its attempts."""
    reply = view.stub.GetRollout(
        rollout_pb2.GetRolloutRequest(rollout_id=rollout_id), timeout=DEADLINE
    )
    request = attempt_pb2.ListAttemptsRequest(rollout_id=rollout_id, page_size=1000)
    attempts = [plain(a) for a in _pages(view.stub.ListAttempts, request, "attempts")]
    shown = plain(reply.rollout)
    shown.pop("latest_attempt", None)
    if view.as_json:
        view.json({**shown, "attempts": attempts})
        return
    view.table("Rollout", ("", ""), shown.items())
    view.table(
        f"{len(attempts)} attempts",
        ("attempt", "status", "spans", "worker", "started", "ended", "failure"),
        (
            (
                a["attempt_id"],
                a["status"],
                a.get("span_count", 0),
                a.get("worker_id"),
                _time(a["start_time"]),
                _time(a.get("end_time")),
                a.get("failure"),
            )
            for a in attempts
        ),
    )


@_view("spans", "rollout_id")
def spans(view: View, rollout_id: str, attempt: str, limit: int) -> None:
    """Show the spans of a rollout in their order."""
    request = span_pb2.QuerySpansRequest(rollout_id=rollout_id, attempt_id=attempt, limit=limit)
    found: list[dict[str, Any]] = []
    for reply in view.stub.QuerySpans(request, timeout=DEADLINE * 6):
        for batch in reply.batches:
            found += [
                _span(batch.attempt_id, sequence_id, span)
                for sequence_id, span in zip(batch.sequence_ids, batch.spans, strict=True)
            ]
    if view.as_json:
        view.json(found)
        return
    view.table(
        f"{len(found)} spans",
        ("seq", "attempt", "name", "span", "parent", "ms", "attributes"),
        (
            (
                s["sequence_id"],
                s["attempt_id"],
                s["name"],
                s["span_id"],
                s["parent_span_id"],
                f"{(s['end_time_unix_nano'] - s['start_time_unix_nano']) / 1e6:.2f}",
                s["attributes"],
            )
            for s in found
        ),
    )


spans.params += [
    click.Option(["--attempt"], default="", help="One attempt by id, or latest."),
    click.Option(["--limit"], default=-1, help="Most spans to show; -1: all."),
]


def _span(attempt_id: str, sequence_id: int, span: Any) -> dict[str, Any]:
    return {
        "sequence_id": sequence_id,
        "attempt_id": attempt_id,
        "name": span.name,
        "trace_id": span.trace_id.hex(),
        "span_id": span.span_id.hex(),
        "parent_span_id": span.parent_span_id.hex(),
        "start_time_unix_nano": span.start_time_unix_nano,
        "end_time_unix_nano": span.end_time_unix_nano,
        "attributes": {kv.key: _attribute(kv.value) for kv in span.attributes},
    }


def _attribute(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_attribute(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return {item.key: _attribute(item.value) for item in value.kvlist_value.values}
    found = getattr(value, kind)
    return found.hex() if isinstance(found, bytes) else found


@_view("workers")
def workers(view: View) -> None:
    """List workers."""
    request = worker_pb2.ListWorkersRequest(page_size=1000)
    found = [plain(w) for w in _pages(view.stub.ListWorkers, request, "workers")]
    if view.as_json:
        view.json(found)
        return
    view.table(
        f"{len(found)} workers",
        ("worker", "status", "rollout", "attempt", "last heartbeat", "last dequeue", "stats"),
        (
            (
                w["worker_id"],
                w["status"],
                w.get("current_rollout_id"),
                w.get("current_attempt_id"),
                _time(w.get("last_heartbeat_time")),
                _time(w.get("last_dequeue_time")),
                w.get("stats"),
            )
            for w in found
        ),
    )


@_view("resources")
def resources(view: View, *, show_secrets: bool) -> None:
    """List resources; keys of endpoints are masked."""
    request = resources_pb2.ListResourcesRequest(page_size=1000)
    pages = _pages(view.stub.ListResources, request, "resources")
    found = [plain(r, show_secrets=show_secrets) for r in pages]
    if view.as_json:
        view.json(found)
        return
    view.table(
        f"{len(found)} resources",
        ("resources", "version", "updated", "names"),
        (
            (r["resources_id"], r["version"], _time(r["update_time"]), r.get("resources", {}))
            for r in found
        ),
    )


resources.params.append(
    click.Option(["--show-secrets"], is_flag=True, help="Print the keys of endpoints.")
)
