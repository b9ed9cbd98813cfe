"""`lightningstore token`: creates, lists and revokes the tokens of a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.rules.errors import Misconfigured
from lightningstore.service.security import tokens
from lightningstore.service.security.permissions import Role, Token, lifetime, new_token


@click.group()
def token() -> None:
    """Create, list and revoke access tokens. A running server applies changes at once."""


def _file_option(*, required: bool) -> Callable[[Any], Any]:
    return click.option(
        "--file",
        "path",
        envvar="LIGHTNINGSTORE_AUTH_TOKENS",
        show_envvar=True,
        required=required,
        type=click.Path(path_type=Path),
        help="Tokens file.",
    )


@token.command()
@_file_option(required=False)
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="What the token allows.",
)
@click.option(
    "--name",
    required=True,
    help="Name of the token; shown by `token list`, used by `token revoke`.",
)
@click.option("--expires", metavar="TIME", help="Lifetime: 30d, 12h or 45m. Default: unlimited.")
@click.option(
    "--namespace",
    multiple=True,
    metavar="NAME",
    help="Namespace that the token is limited to. May be repeated. Default: all.",
)
def new(
    path: Path | None, role: str, name: str, expires: str | None, namespace: tuple[str, ...]
) -> None:
    """Print a new token, once, and add its hash to the tokens file, which is created if it is missing.

    Without a file, print the line to append on stderr.
    """
    try:
        end = tokens.utc(SystemClock()) + lifetime(expires) if expires else None
        secret, made = new_token(name, Role(role), end, namespace)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if path is not None:
        _append(path, made)
    click.echo(secret)
    if path is None:
        click.echo(f"append to the tokens file: {made.line()}", err=True, nl=False)


def _append(path: Path, made: Token) -> None:
    try:
        tokens.append(path, made)
    except (ValueError, Misconfigured) as error:
        raise click.ClickException(str(error)) from None


@token.command("list")
@_file_option(required=True)
def list_tokens(path: Path) -> None:
    """Print name, role, expiry and namespaces of each token."""
    now = tokens.utc(SystemClock())
    for known in _read(path):
        end = f"{known.expires:%Y-%m-%d %H:%M:%S} UTC" if known.expires else "never"
        over = " (expired)" if known.expires and known.expires <= now else ""
        names = "all namespaces" if known.namespaces is None else ",".join(sorted(known.namespaces))
        click.echo(f"{known.name}\t{known.role.value}\t{end}{over}\t{names}")


def _read(path: Path) -> list[Any]:
    try:
        return tokens.read_tokens(path)[0]
    except Misconfigured as error:
        raise click.ClickException(str(error)) from None


@token.command()
@_file_option(required=True)
@click.argument("name")
def revoke(path: Path, name: str) -> None:
    """Remove a token from the file: the next call with it is rejected."""
    try:
        tokens.remove(path, name)
    except Misconfigured as error:
        raise click.ClickException(str(error)) from None
