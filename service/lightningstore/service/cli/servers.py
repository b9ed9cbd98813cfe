"""`lightningstore servers`: the servers that share namespaces, who owns what, and moving a namespace."""

from __future__ import annotations

from typing import Any

import click
from lightningstore.service.cli import connection
from lightningstore.service.cli.connection import Connection, connected
from lightningstore.service.cli.output import Listing
from lightningstore.service.cli.table import Column
from lightningstore.service.cli.views import group, plain, view
from lightningstore.v1 import cluster_pb2

COLUMNS = (
    Column("SERVER", "id", rank=0),
    Column("STATE", rank=1),
    Column("OWNS", "number", rank=2),
    Column("NAMESPACES", "text", rank=3),
)


def _list(server: Connection) -> Listing:
    """List the live servers and the namespaces that each of them owns."""
    found = list(server.call(cluster_pb2.ListServersRequest()).servers)
    rows = [
        [
            one.address,
            "draining" if one.draining else "serving",
            str(len(one.namespaces)),
            ", ".join(one.namespaces),
        ]
        for one in found
    ]
    return Listing("server", COLUMNS, rows, [plain(one) for one in found], "by address")


def _move(name: str, to: str, **given: Any) -> None:
    """Move a namespace to a server, where it stays for as long as that server lives.

    Without --to the servers choose again.
    """
    with connected(connection.take(given)) as server:
        server.call(cluster_pb2.MoveNamespaceRequest(name=name, address=to))
    click.echo(f"{name}\t{f'moves to {to}' if to else 'goes where the servers choose'}")


_list_command = view("list")(_list)
COMMANDS = (
    _list_command,
    click.Command(
        "move",
        callback=_move,
        help=_move.__doc__,
        params=[
            # Not "namespace": that is the option of the same name, which every command has.
            click.Argument(["name"], metavar="NAMESPACE", shell_complete=connection.namespaces),
            click.Option(["--to"], default="", metavar="HOST:PORT", help="Address of the server."),
            *connection.options(),
        ],
    ),
)


servers = group(
    "servers",
    "List the servers that share namespaces, and move namespaces between them. Without a command: list them.",
    *COMMANDS,
)
