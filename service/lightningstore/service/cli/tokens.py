"""`lightningstore token`: makes, lists and revokes the tokens of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import Role, lifetime, new_token


@click.group()
def token() -> None:
    """Make, list and revoke tokens; a running server follows at once."""


def _file_option(*, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "--file",
        "path",
        envvar="LIGHTNINGSTORE_AUTH_TOKENS",
        show_envvar=True,
        required=required,
        type=click.Path(path_type=Path),
        help="The tokens file.",
    )


@token.command()
@_file_option(required=False)
@click.option("--role", required=True, type=click.Choice([role.value for role in Role]))
@click.option("--name", required=True, help="Who gets it; told in lists and to revoke it.")
@click.option("--expires", metavar="TIME", help="Lifetime: 30d, 12h or 45m; unset: it never ends.")
def new(path: Path | None, role: str, name: str, expires: str | None) -> None:
    """Print a new token, once, and add its hash to the file, which is made if it is not there.

    Without a file the line to append is printed on stderr.
    """
    try:
        end = tokens.utc(SystemClock()) + lifetime(expires) if expires else None
        secret, made = new_token(name, Role(role), end)
        if path is not None:
            tokens.append(path, made)
    except (ValueError, Misconfigured) as error:
        raise click.ClickException(str(error)) from None
    click.echo(secret)
    if path is None:
        click.echo(f"append to the tokens file: {made.line()}", err=True, nl=False)


@token.command("list")
@_file_option(required=True)
def list_tokens(path: Path) -> None:
    """Print name, role and end of each token of the file."""
    now = tokens.utc(SystemClock())
    for known in _read(path):
        end = f"{known.expires:%Y-%m-%d %H:%M:%S} UTC" if known.expires else "never"
        over = " (expired)" if known.expires and known.expires <= now else ""
        click.echo(f"{known.name}\t{known.role.value}\t{end}{over}")


def _read(path: Path) -> list[Any]:
    try:
        return tokens.read_tokens(path)[0]
    except Misconfigured as error:
        raise click.ClickException(str(error)) from None


@token.command()
@_file_option(required=True)
@click.argument("name")
def revoke(path: Path, name: str) -> None:
    """Take a token out of the file: the next call with it is refused."""
    try:
        tokens.remove(path, name)
    except Misconfigured as error:
        raise click.ClickException(str(error)) from None
