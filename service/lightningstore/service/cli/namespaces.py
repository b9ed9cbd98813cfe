"""`lightningstore namespaces`: lists, creates, changes and deletes the namespaces of a server."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import click
from lightningstore.client.namespaces import name_error
from lightningstore.service.cli import connection, units
from lightningstore.service.cli.connection import Connection, connected
from lightningstore.service.cli.output import Details, Listing, Output, options
from lightningstore.service.cli.table import Cell, Column
from lightningstore.service.cli.views import age, group, now, plain, time_cell, view
from lightningstore.v1 import namespace_pb2

#: Words for a limit: that of the server, and none.
SERVERS, NONE = "default", "none"
_PAGE = 1000
_SETTINGS = (
    *("description", "labels", "retain_finished", "max_bytes", "max_queue_length"),
    "keep_resource_versions",
)

COLUMNS = (
    Column("NAMESPACE", "id", rank=0),
    Column("RETAINED", rank=3),
    Column("MAX SIZE", rank=4),
    Column("MAX QUEUE", "number", rank=5),
    Column("DESCRIPTION", "text", rank=1),
    Column("LABELS", "text", rank=2),
    Column("AGE", rank=1),
    Column("STORE", wide=True),
    Column("UPDATED", wide=True),
    Column("VERSIONS KEPT", "number", wide=True),
)


class _Limit(click.ParamType):  # type: ignore[type-arg]
    """A limit of a namespace: a value, `none`, or `default` for that of the server."""

    def __init__(self, name: str, parse: Callable[[str], float]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the value, 0 for none, or the word for that of the server."""
        if value == SERVERS:
            return value
        if value == NONE:
            return 0
        try:
            found = self._parse(value)
        except ValueError as error:
            self.fail(f"{error}; {NONE} and {SERVERS} are possible, too", param, ctx)
        if found < 0:
            self.fail(f"{value!r} is below 0", param, ctx)
        return found


def _label(_context: object, _option: object, values: tuple[str, ...]) -> dict[str, str | None]:
    """Return labels by key, None for one that is removed: KEY=VALUE, KEY-."""
    found: dict[str, str | None] = {}
    for pair in values:
        key, equals, value = pair.partition("=")
        if equals and key:
            found[key] = value
        elif pair.endswith("-") and len(pair) > 1:
            found[pair[:-1]] = None
        else:
            raise click.BadParameter(f"{pair!r} is neither KEY=VALUE nor KEY-")
    return found


def _settings_options(*, of_update: bool = False) -> list[click.Parameter]:
    """Return the options of the settings of a namespace. An update leaves out what is not given."""
    server = f"{SERVERS}: as the server" if of_update else "Default: as the server"
    stop = ", " if of_update else ". "
    return [
        click.Option(["--description"], metavar="TEXT", help="Text for people."),
        click.Option(
            ["--label", "labels"],
            multiple=True,
            callback=_label,
            metavar="KEY=VALUE",
            help=f"Label{'; KEY- removes one' if of_update else ''}. May be repeated.",
        ),
        click.Option(
            ["--retain-finished"],
            type=_Limit("duration", units.seconds_of),
            help=f"Remove finished rollouts after this time: 12h, 7d, none{stop}{server}.",
        ),
        click.Option(
            ["--max-size", "max_bytes"],
            type=_Limit("size", units.size_of),
            help="Remove the oldest finished rollouts above this size: 500MB, 20GiB, "
            f"none{stop}{server}.",
        ),
        click.Option(
            ["--max-queue-length"],
            type=_Limit("number", units.number_of),
            help=f"Maximum number of rollouts in the queue, or none{stop}{server}.",
        ),
        click.Option(
            ["--keep-resource-versions"],
            type=_Limit("number", partial(units.number_of, maximum=units.MAX_INT32)),
            help="Number of versions that are kept of each resources id; none: all. Default: as the server.",
        ),
    ]


def _apply(given: dict[str, Any], record: namespace_pb2.Namespace) -> list[str]:
    """Set the fields that the options name, and return their names. Labels are merged with those of the record."""
    named = [name for name in _SETTINGS if given[name] not in (None, {})]
    for name in named:
        value = given[name]
        if name == "labels":
            for key, text in value.items():
                record.labels.pop(key, None)
                if text is not None:
                    record.labels[key] = text
        elif value == SERVERS and name != "description":
            record.ClearField(name)  # type: ignore[arg-type]
        elif name == "retain_finished":
            record.retain_finished.FromNanoseconds(round(value * 1e9))
        else:
            setattr(record, name, value)
    return named


def _list(server: Connection, name_contains: str) -> Listing:
    """List the namespaces of a server, by name; with a token limited to some, those."""
    request = namespace_pb2.ListNamespacesRequest(name_contains=name_contains, page_size=_PAGE)
    found = list(server.pages(request, "namespaces"))
    moment = now()
    rows = [
        [
            one.name,
            _limit(one, "retain_finished", lambda value: units.span(value.ToSeconds())),
            _limit(one, "max_bytes", units.size),
            _limit(one, "max_queue_length", lambda value: f"{value:,}"),
            one.description,
            ", ".join(f"{key}={one.labels[key]}" for key in sorted(one.labels)),
            age(one.create_time, moment),
            one.store_id,
            time_cell(one.update_time),
            _limit(one, "keep_resource_versions", lambda value: f"{value:,}"),
        ]
        for one in found
    ]
    return Listing("namespace", COLUMNS, rows, [plain(one) for one in found], "by name")


def _limit(one: namespace_pb2.Namespace, field: str, text: Callable[[Any], str]) -> Cell:
    """Return the cell of a limit: empty for that of the server."""
    if not one.HasField(field):  # type: ignore[arg-type]
        return Cell("", "")
    value = getattr(one, field)
    raw = f"{value.ToNanoseconds() / 1e9:g}" if field == "retain_finished" else str(value)
    return Cell(NONE if raw == "0" else text(value), raw)


def _get(server: Connection, name: str) -> Details:
    """Show the settings of a namespace."""
    return Details(plain(server.call(namespace_pb2.GetNamespaceRequest(name=name)).namespace))


def _create(name: str, **given: Any) -> None:
    """Create a namespace: a store of its own, which shares nothing with the others."""
    shown = Output(given)
    request = namespace_pb2.CreateNamespaceRequest(request_id=uuid.uuid4().hex)
    request.namespace.name = name
    _apply(given, request.namespace)
    with connected(connection.take(given)) as server:
        _say(shown, server.call(request).namespace, "created")


def _update(name: str, **given: Any) -> None:
    """Change the settings of a namespace. What is not given stays as it is."""
    shown = Output(given)
    with connected(connection.take(given)) as server:
        request = namespace_pb2.UpdateNamespaceRequest()
        if given["labels"]:  # they are replaced as a whole
            current = server.call(namespace_pb2.GetNamespaceRequest(name=name)).namespace
            request.namespace.labels.MergeFrom(current.labels)
        request.namespace.name = name
        request.update_mask.paths.extend(_apply(given, request.namespace))
        if not request.update_mask.paths:
            raise click.UsageError("no setting is given: there is nothing to change")
        _say(shown, server.call(request).namespace, "changed")


def _say(shown: Output, namespace: namespace_pb2.Namespace, done: str) -> None:
    if shown.format is None:
        click.echo(f"{namespace.name}\t{done}")
    else:
        shown.details(Details(plain(namespace)))


def _delete(name: str, *, force: bool, yes: bool, **given: Any) -> None:
    """Delete a namespace with everything in it: rollouts, spans, resources and workers.

    On a terminal its name has to be typed, unless --yes.
    """
    if not yes and not sys.stdin.isatty():
        raise click.UsageError("--yes is required when stdin is not a terminal")
    with connected(connection.take(given)) as server:
        if not yes:
            server.call(namespace_pb2.GetNamespaceRequest(name=name))
            typed = click.prompt(f"Type {name} to delete it with everything in it", err=True)
            if typed != name:
                raise click.ClickException(f"{typed!r} is not {name!r}: nothing was deleted")
        server.call(namespace_pb2.DeleteNamespaceRequest(name=name, force=force))
    click.echo(f"{name}\tdeleted")


def _checked(_context: object, _option: object, name: str) -> str:
    if error := name_error(name):
        raise click.BadParameter(error)
    return name


def _name(complete: connection.Complete | None = connection.namespaces) -> click.Argument:
    return click.Argument(["name"], metavar="NAME", callback=_checked, shell_complete=complete)


_FILTER = click.Option(
    ["--name-contains"], default="", metavar="TEXT", help="Only names with this text."
)
_list_command = view("list", _FILTER)(_list)
COMMANDS = (
    _list_command,
    view("get", _name())(_get),
    click.Command(
        "create",
        callback=_create,
        help=_create.__doc__,
        params=[
            _name(complete=None),
            *_settings_options(),
            *options(),
            *connection.options(),
        ],
    ),
    click.Command(
        "update",
        callback=_update,
        help=_update.__doc__,
        params=[_name(), *_settings_options(of_update=True), *options(), *connection.options()],
    ),
    click.Command(
        "delete",
        callback=_delete,
        help=_delete.__doc__,
        params=[
            _name(),
            click.Option(["--force"], is_flag=True, help="Also if attempts are running in it."),
            click.Option(["-y", "--yes"], is_flag=True, help="Do not ask."),
            *connection.options(),
        ],
    ),
)


namespaces = group(
    "namespaces",
    "List, create, change and delete the namespaces of a server. Without a command: list them.",
    *COMMANDS,
)
