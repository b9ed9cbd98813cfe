"""`lightningstore backup`, `restore`, `check` and `vacuum`: work on the data file, without a server."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from lightningstore.service.cli.connection import error_text
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.server.config import Config
from lightningstore.service.storage.sqlite import guardian, repair, tools

_FILE = click.Path(path_type=Path, dir_okay=False)
MIB = 1 << 20


def _db_option(function: Any) -> Any:
    return click.option(
        "--db",
        type=_FILE,
        envvar="LIGHTNINGSTORE_DB",
        show_envvar=True,
        default=Config.model_fields["db"].default,
        show_default=True,
        help="Data file.",
    )(function)


def _run(work: Callable[[], Any]) -> Any:
    """Return what the work returns; an error becomes one line."""
    try:
        return work()
    except (StorageUnusable, OSError) as error:
        raise click.ClickException(error_text(error)) from None


@click.command()
@click.argument("target", type=_FILE)
@_db_option
def backup(target: Path, db: Path) -> None:
    """Copy the data file to TARGET, a new file. A server may be running on it."""
    with click.progressbar(length=1, label="pages", file=sys.stderr) as bar:

        def copy() -> int:
            with guardian.guarded(db, tools.draft_of(target)) as alive:

                def show(done: int, total: int) -> None:
                    alive(done, total)
                    bar.length = total
                    bar.update(done - bar.pos)

                return tools.backup(db, target, show)

        size = _run(copy)
    click.echo(f"{target}: {size / MIB:.1f} MiB")


@click.command()
@click.argument("source", type=_FILE)
@_db_option
@click.option("--replace", is_flag=True, help="Replace the data file if it exists.")
def restore(source: Path, db: Path, *, replace: bool) -> None:
    """Check the backup SOURCE and restore it as the data file. No server may be running on it."""
    _run(lambda: tools.restore(source, db, replace=replace))
    click.echo(f"{db}: restored from {source}")


@click.command()
@_db_option
@click.option(
    "--repair",
    "fix",
    is_flag=True,
    help="Remove unreadable records and correct the others; a copy is kept. No server may be running.",
)
def check(db: Path, *, fix: bool) -> None:
    """Check the data file for damage; exit code 1 if there is any left. A server may be running on it."""
    if fix:
        for line in _run(lambda: repair.repair(db)):
            click.echo(line)
    found = _run(lambda: tools.check(db))
    for line in found or ["ok"]:
        click.echo(line)
    if found:
        raise SystemExit(1)


@click.command()
@_db_option
def vacuum(db: Path) -> None:
    """Return unused space to the file system. No server may be running on the data file."""
    before, after = _run(lambda: tools.vacuum(db))
    click.echo(f"{db}: {before / MIB:.1f} MiB before, {after / MIB:.1f} MiB now")


COMMANDS = (backup, restore, check, vacuum)
