"""The `lightningstore` program: runs a command, and turns errors into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import NoReturn

import click
from lightningstore.service.cli.main import NAME, app


def main() -> None:
    """Run the command line. What goes wrong is one line on stderr; exit code 2 for wrong usage, else 1."""
    try:
        code = app(prog_name=NAME, standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.UsageError as error:
        _usage(error)
    except click.ClickException as error:
        _fail(error.format_message(), 1)
    except BrokenPipeError:
        # Whoever reads stdout has enough. Python would complain when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


def _usage(error: click.UsageError) -> NoReturn:
    if error.ctx is not None and error.format_message() == error.ctx.get_help():
        click.echo(
            error.format_message()
        )  # no command was given: click before 8.2 prints it itself
        sys.exit(0)
    _fail("\n".join([error.format_message(), *_usage_lines(error)]), 2)


def _usage_lines(error: click.UsageError) -> Iterator[str]:
    context = error.ctx or _context_of(sys.argv[1:])
    usage = " ".join(context.get_usage().split()).replace("Usage:", "usage:", 1)
    yield f"{usage}  (--help lists the options)"


def _context_of(arguments: list[str]) -> click.Context:
    """Return the context of the command that is named first: click's parser gives its errors none."""
    command: click.Command = app
    context = click.Context(app, info_name=NAME)
    for word in arguments:
        if isinstance(command, click.Group) and word in command.list_commands(context):
            found = command.get_command(context, word)
            if found is not None:
                command = found
                context = click.Context(command, parent=context, info_name=word)
    return context


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"{NAME}: {message}", err=True)
    sys.exit(code)
