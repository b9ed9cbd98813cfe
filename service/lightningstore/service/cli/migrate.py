"""`lightningstore migrate`: copies a namespace from a data file to a PostgreSQL database, or back."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from lightningstore.client.connection import NAMESPACE_VARIABLE
from lightningstore.client.namespaces import DEFAULT_NAMESPACE, name_error
from lightningstore.service.cli import units
from lightningstore.service.cli.connection import error_text
from lightningstore.service.cli.datasets import progress
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.back_ends import database_at, is_database, path_at
from lightningstore.service.storage.sqlite.transfer import Place, place_of

if TYPE_CHECKING:
    from lightningstore.service.storage.postgres.transfer import Copied, Show


@click.command()
@click.argument("source")
@click.argument("target")
@click.option(
    "--namespace",
    envvar=NAMESPACE_VARIABLE,
    show_envvar=True,
    default=DEFAULT_NAMESPACE,
    show_default=True,
    metavar="NAME",
    help="Namespace of SOURCE that is copied.",
)
@click.option(
    "--target-namespace", metavar="NAME", help="Its name in TARGET. Default: as in SOURCE."
)
def migrate(source: str, target: str, namespace: str, target_namespace: str | None) -> None:
    """Copy a namespace from a data file to a PostgreSQL database, or back. No server may use it.

    SOURCE and TARGET are the data file of a server (its --db, or the folder of --data) and the URL of a database:
    postgresql://user@host/database. Ids, numbers and page tokens stay valid. SOURCE is not changed, and a
    TARGET with content is not overwritten.
    """
    named = target_namespace or namespace
    for flag, name in (("--namespace", namespace), ("--target-namespace", named)):
        if error := name_error(name):
            raise click.UsageError(f"{flag} {error}")
    if is_database(source) == is_database(target):
        raise click.UsageError(
            "one of SOURCE and TARGET must be a data file and the other postgresql://user@host/database"
        )
    try:
        if is_database(target):
            _to_database(_place(source, namespace), source, target, namespace, named)
        else:
            _to_file(source, _place(target, named), target, namespace, named)
    except (StorageUnusable, OSError) as error:
        raise click.ClickException(error_text(error)) from None


def _place(given: str, namespace: str) -> Place:
    try:
        path = path_at(given)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if path is None:
        raise click.UsageError("the memory back end keeps nothing that could be copied")
    return place_of(path, namespace, folder=_is_folder(given))


def _is_folder(given: str) -> bool:
    return given.endswith("/") or Path(path_at(given) or "").is_dir()


def _to_database(place: Place, source: str, url: str, namespace: str, named: str) -> None:
    if not place.path.exists():
        hint = ""
        if place.catalog is not None and not _is_folder(source) and Path(source).is_file():
            hint = f"; to copy {source} itself under this name: --target-namespace {namespace}"
        raise click.ClickException(
            f"there is no namespace {namespace!r}: {place.path} does not exist{hint}"
        )
    database = database_at(url)
    from lightningstore.service.storage.postgres.transfer import to_database  # noqa: PLC0415

    if sys.stderr.isatty():
        click.echo(f"checking {place.path}", err=True)
    _run(
        lambda show: asyncio.run(to_database(place.path, database, named, show)),
        f"{place.path} → {database.location}, namespace {named}",
    )
    where = url if url == database.location else "URL"
    click.echo(
        f"next: lightningstore serve --database-url {where}; {place.path} is a backup from now on: "
        "start no server on it"
    )


def _to_file(url: str, place: Place, target: str, namespace: str, named: str) -> None:
    database = database_at(url)
    from lightningstore.service.storage.postgres.transfer import to_file  # noqa: PLC0415

    _run(
        lambda show: asyncio.run(to_file(database, namespace, place, show)),
        f"{database.location}, namespace {namespace} → {place.path}",
    )
    serve = f"--data {target}" if _is_folder(target) else f"--db {target}"
    click.echo(
        f"next: lightningstore serve {serve}, clients with namespace {named}; namespace {namespace} of the database is "
        "a backup from now on: start no server on it"
    )


def _run(copy: Callable[[Show], Copied], what: str) -> None:
    """Copy with progress, and print what was copied."""
    clock = SystemClock()
    begun = clock.monotonic()
    with progress("copying") as show:
        copied = copy(lambda now: show(now.done, now.total, _counts(now)))
    seconds = units.span(clock.monotonic() - begun)
    click.echo(f"{what}: {_counts(copied)}, {units.size(copied.size)} in {seconds}")


def _counts(copied: Copied) -> str:
    nouns = ("rollout", "attempt", "span")
    return ", ".join(units.count(getattr(copied, f"{noun}s"), noun) for noun in nouns)
