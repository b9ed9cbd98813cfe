"""`lightningstore backup`, `restore`, `check` and `vacuum`: work on the data file, without a server."""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource
from click.shell_completion import CompletionItem
from lightningstore.client.connection import NAMESPACE_VARIABLE
from lightningstore.client.namespaces import DEFAULT_NAMESPACE, name_error
from lightningstore.service.cli.connection import error_text
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.server.config import Config
from lightningstore.service.storage.sqlite import catalog, guardian, repair, tools

_FILE = click.Path(path_type=Path, dir_okay=False)
MIB = 1 << 20


def _db_options(function: Any) -> Any:
    """Add --db, --data and --namespace; the command gets the data file that they name as `db`."""

    @functools.wraps(function)
    def run(*, db: Path, data: Path | None, namespace: str, **given: Any) -> None:
        if data is not None and _is_given("db"):
            raise click.UsageError("--data and --db exclude each other")
        if error := name_error(namespace):
            raise click.UsageError(f"--namespace {error}")
        files = Files(db, data)
        if "whole" in given:
            if given["whole"] and _is_given("namespace"):
                raise click.UsageError("--all and --namespace exclude each other")
            whole = given.pop("whole")
            given["files"] = files.by_name() if whole else {"": files.of(namespace)}
        else:
            given["db"] = files.of(namespace)
        function(**given)

    db = click.option(
        "--db",
        type=_FILE,
        envvar="LIGHTNINGSTORE_DB",
        show_envvar=True,
        default=Config.model_fields["db"].default,
        show_default=True,
        help="Data file of the namespace default; the others are DB.d/NAME.db.",
    )
    data = click.option(
        "--data",
        type=click.Path(path_type=Path, file_okay=False),
        envvar="LIGHTNINGSTORE_DATA",
        show_envvar=True,
        help="Folder of the data files, NAME.db, if the server was started with --data instead of --db.",
    )
    namespace = click.option(
        "--namespace",
        envvar=NAMESPACE_VARIABLE,
        show_envvar=True,
        default=DEFAULT_NAMESPACE,
        show_default=True,
        metavar="NAME",
        shell_complete=_names,
        help="Namespace whose data file it is.",
    )
    return db(data(namespace(run)))


class Files(NamedTuple):
    """The data files of a server, one for each namespace."""

    db: Path
    #: The folder of all of them, in place of `db`.
    data: Path | None

    def of(self, namespace: str) -> Path:
        """Return the data file of a namespace."""
        if self.data is not None:
            return self.data / f"{namespace}{catalog.ENDING}"
        return self.db if namespace == DEFAULT_NAMESPACE else catalog.file_of(self.db, namespace)

    def by_name(self) -> dict[str, Path]:
        """Return all of them, the default one first."""
        found = (self.data or catalog.folder_of(self.db)).glob(f"*{catalog.ENDING}")
        names = {path.name.removesuffix(catalog.ENDING) for path in found}
        others = sorted(name for name in names - {DEFAULT_NAMESPACE} if not name_error(name))
        return {name: self.of(name) for name in (DEFAULT_NAMESPACE, *others)}


def _is_given(name: str) -> bool:
    source = click.get_current_context().get_parameter_source(name)
    return source in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)


def _names(context: click.Context, _parameter: click.Parameter, text: str) -> list[CompletionItem]:
    """Return the namespaces that have a file and begin with a text, for the shell."""
    db = context.params.get("db") or Config.model_fields["db"].default
    names = Files(Path(db), context.params.get("data")).by_name()
    return [CompletionItem(name) for name in names if name.startswith(text)]


def _run(work: Callable[[], Any]) -> Any:
    """Return what the work returns; an error becomes one line."""
    try:
        return work()
    except (StorageUnusable, OSError) as error:
        raise click.ClickException(error_text(error)) from None


@click.command()
@click.argument("target", type=_FILE)
@_db_options
def backup(target: Path, db: Path) -> None:
    """Copy the data file to TARGET, a new file. A server may be running on it."""
    # Without a terminal click would print the label alone.
    shown = sys.stderr if sys.stderr.isatty() else io.StringIO()
    with click.progressbar(length=1, label="pages", file=shown) as bar:

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
@_db_options
@click.option("--replace", is_flag=True, help="Replace the data file if it exists.")
def restore(source: Path, db: Path, *, replace: bool) -> None:
    """Check the backup SOURCE and restore it as the data file. No server may be running on it."""
    if db.parent.suffix == catalog.FOLDER_ENDING and not db.parent.exists():
        _run(lambda: db.parent.mkdir(mode=0o700))
    _run(lambda: tools.restore(source, db, replace=replace))
    click.echo(f"{db}: restored from {source}")


@click.command()
@_db_options
@click.option("--all", "whole", is_flag=True, help="Check the files of all namespaces.")
@click.option(
    "--repair",
    "fix",
    is_flag=True,
    help="Remove unreadable records and correct the others; a copy is kept. No server may be running.",
)
def check(files: dict[str, Path], *, fix: bool) -> None:
    """Check the data file for damage; exit code 1 if there is any left. A server may be running on it."""
    is_sound = True
    for name, path in files.items():
        try:
            is_sound &= _check(path, f"{name}: " if name else "", fix=fix)
        except click.ClickException as error:
            if not name:
                raise
            click.echo(f"{name}: {error.message}")  # the other files are checked all the same
            is_sound = False
    if not is_sound:
        raise SystemExit(1)


def _check(db: Path, label: str, *, fix: bool) -> bool:
    """Check a file, and repair it before that if `fix`; return whether it is sound."""
    if fix:
        for line in _run(lambda: repair.repair(db)):
            click.echo(f"{label}{line}")
    found = _run(lambda: tools.check(db))
    for line in found or ["ok"]:
        click.echo(f"{label}{line}")
    return not found


@click.command()
@_db_options
def vacuum(db: Path) -> None:
    """Return unused space to the file system. No server may be running on the data file."""
    before, after = _run(lambda: tools.vacuum(db))
    click.echo(f"{db}: {before / MIB:.1f} MiB before, {after / MIB:.1f} MiB now")


COMMANDS = (backup, restore, check, vacuum)
