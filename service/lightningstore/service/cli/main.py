"""The command line: `lightningstore serve`, and looks at a running server."""

from __future__ import annotations

import asyncio
import signal
import sys
from importlib.metadata import version
from typing import Any, Literal, get_args, get_origin

import click
from lightningstore.service.cli.connection import health
from lightningstore.service.cli.datasets import export_command, import_command
from lightningstore.service.cli.files import COMMANDS
from lightningstore.service.cli.tokens import token
from lightningstore.service.cli.trace import trace
from lightningstore.service.cli.views import VIEWS
from lightningstore.service.rules.errors import Misconfigured, StorageUnusable
from lightningstore.service.server import logs, tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import AddressInUse, Server, start_server
from pydantic import ValidationError

PREFIX = str(Config.model_config["env_prefix"])


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("lightningstore"), prog_name="lightningstore")
def app() -> None:
    """Control plane and trace store of agent reinforcement learning, over gRPC."""


def _serve_options() -> list[click.Parameter]:
    """Return an option for each field of Config; what is not given is left to it."""
    options: list[click.Parameter] = []
    for name, field in Config.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        default = "none" if field.default is None else field.default
        shown = f"[env {PREFIX}{name.upper()}; default {default}]"
        help_text = f"{field.description} {shown}"
        if get_origin(field.annotation) is Literal:
            kind: Any = click.Choice(get_args(field.annotation))
        else:
            kind = str  # Config knows the types, and says what is wrong with a value
        if field.annotation is bool:
            options.append(click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help_text))
        else:
            options.append(click.Option([flag], type=kind, default=None, help=help_text))
    return options


def serve(**given: Any) -> None:
    """Start the server. SIGTERM and Ctrl-C end it cleanly."""
    try:
        config = Config(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise click.ClickException(_one_line(error)) from None
    tuning.keep_freed_memory()
    logs.set_up(config.log_level, as_json=config.log_json)
    try:
        tuning.run(_serve(config))
    except (StorageUnusable, AddressInUse, Misconfigured) as error:
        raise click.ClickException(str(error)) from None


def _one_line(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        given = f", got {problem['input']!r}" if name else ""
        problems.append(f"{'--' + name + ': ' if name else ''}{problem['msg']}{given}")
    return "; ".join(problems)


async def _serve(config: Config) -> None:
    server = await start_server(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    _greet(server)
    tuning.settle_garbage()
    await stop.wait()
    await server.stop(config.grace)
    if not server.is_usable:  # a supervisor must not take this for a good end
        raise SystemExit(1)


def _greet(server: Server) -> None:
    scheme = "https://" if server.gate.credentials else ""
    click.echo(
        f"lightningstore {version('lightningstore')} on {server.address}, {server.data}, "
        f"access: {server.gate.description}; "
        f"clients: export LIGHTNINGSTORE_ADDRESS={scheme}{server.address}"
    )
    sys.stdout.flush()


app.add_command(click.Command("serve", params=_serve_options(), callback=serve, help=serve.__doc__))
app.add_command(token)
for command in (*VIEWS, trace, *COMMANDS, export_command, import_command, health):
    app.add_command(command)


def main() -> None:
    """Run the command line: what goes wrong is one line on stderr and exit code 1."""
    try:
        app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
    except click.ClickException as error:
        click.echo(f"lightningstore: {error.format_message()}", err=True)
        sys.exit(1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(1)
