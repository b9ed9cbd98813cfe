"""`lightningstore backup`, `restore`, `check` and `vacuum`: the data file, without a server's help."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
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
        help="The data file.",
    )(function)


def _told(work: Callable[[], Any]) -> Any:
    """Do it; what goes wrong becomes one line."""
    try:
        return work()
    except (StorageUnusable, OSError) as error:
        raise click.ClickException(str(error)) from None


@click.command()
@click.argument("target", type=_FILE)
@_db_option
def backup(target: Path, db: Path) -> None:
    """Copy the store to TARGET, a new file, while it is served or not."""
    with click.progressbar(length=1, label="pages", file=sys.stderr) as bar:

        def copy() -> int:
            with guardian.guarded(db, tools.draft_of(target)) as alive:

                def show(done: int, total: int) -> None:
                    alive(done, total)
                    bar.length = total
                    bar.update(done - bar.pos)

                return tools.backup(db, target, show)

        size = _told(copy)
    click.echo(f"{target}: {size / MIB:.1f} MiB")


@click.command()
@click.argument("source", type=_FILE)
@_db_option
@click.option("--replace", is_flag=True, help="Also over a data file that is there.")
def restore(source: Path, db: Path, *, replace: bool) -> None:
    """Check the backup SOURCE and put it in the place of the data file. No server may run on it."""
    _told(lambda: tools.restore(source, db, replace=replace))
    click.echo(f"{db}: restored from {source}")


@click.command()
@_db_option
@click.option(
    "--repair",
    "mend",
    is_flag=True,
    help="Remove what cannot be read and correct the rest; a copy is kept. No server may run on the file.",
)
def check(db: Path, *, mend: bool) -> None:
    """Look for damage, while the store is served or not. Exit code 1 if there is any left."""
    if mend:
        for line in _told(lambda: repair.repair(db)):
            click.echo(line)
    found = _told(lambda: tools.check(db))
    for line in found or ["ok"]:
        click.echo(line)
    if found:
        raise SystemExit(1)


@click.command()
@_db_option
def vacuum(db: Path) -> None:
    """Give unused space back to the file system. No server may run on the file."""
    before, after = _told(lambda: tools.vacuum(db))
    click.echo(f"{db}: {before / MIB:.1f} MiB before, {after / MIB:.1f} MiB now")


COMMANDS = (backup, restore, check, vacuum)
