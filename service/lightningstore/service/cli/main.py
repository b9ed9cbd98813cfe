"""The command line: which commands there are. The module of a command is imported when the command is used."""

from __future__ import annotations

import difflib
import gc
import os
from importlib import import_module
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem
from lightningstore.service.cli import connection

NAME = "lightningstore"
_PACKAGE = "lightningstore.service.cli"


class _Entry(NamedTuple):
    """Where a command is, and what it does in one line."""

    module: str
    attribute: str
    help: str
    #: Whether it calls a server: then it takes the options of the connection.
    calls: bool = True


#: By heading, in the order of `lightningstore --help`.
SECTIONS: dict[str, dict[str, _Entry]] = {
    "Server": {
        "demo": _Entry("demo", "demo", "Show a small training in the console.", calls=False),
        "serve": _Entry("serve", "serve", "Start a server.", calls=False),
        "health": _Entry("connection", "health", "Ask whether a server can serve."),
        "status": _Entry("details", "status", "Show what a server is and how much it holds."),
        "namespaces": _Entry(
            "namespaces", "namespaces", "List, create, change and delete namespaces."
        ),
        "servers": _Entry(
            "servers", "servers", "List servers that share namespaces, and move these."
        ),
    },
    "Look": {
        "rollouts": _Entry("rollouts", "rollouts", "List rollouts."),
        "rollout": _Entry("details", "rollout", "Show a rollout and its attempts."),
        "attempts": _Entry("lists", "attempts", "List the attempts of a rollout."),
        "attempt": _Entry("details", "attempt", "Show an attempt."),
        "spans": _Entry("spans", "spans", "List the spans of a rollout."),
        "trace": _Entry("trace", "trace", "Show a trace as a tree, or draw it into a file."),
        "triplets": _Entry("spans", "triplets", "List the triplets of a rollout."),
        "samples": _Entry("samples", "samples", "List rows of tokens to train on, or show one."),
        "groups": _Entry("groups", "groups", "List groups of rollouts, or show one."),
        "consumers": _Entry(
            "consumers", "consumers", "List, create, change and delete consumers of finished work."
        ),
        "series": _Entry("series", "series", "Show how rewards or other measures developed."),
        "workers": _Entry("lists", "workers", "List workers."),
        "worker": _Entry("details", "worker", "Show a worker."),
        "resources": _Entry("lists", "resources", "List resources."),
        "resource": _Entry("details", "resource", "Show resources with what they hold."),
    },
    "Work": {
        "enqueue": _Entry("enqueue", "enqueue", "Put rollouts into the queue."),
        "claim": _Entry("work", "claim", "Claim rollouts from the queue."),
        "pause": _Entry("queues", "pause", "Pause claims: no attempt begins."),
        "resume": _Entry("queues", "resume", "Resume claims."),
        "report": _Entry("work", "report", "Report the outcome of an attempt."),
        "wait": _Entry("work", "wait", "Wait until rollouts have finished."),
        "cancel": _Entry("work", "cancel", "Cancel rollouts."),
        "retry": _Entry("work", "retry", "Put finished rollouts into the queue again."),
        "delete": _Entry("delete", "delete", "Delete finished rollouts with their spans."),
    },
    "Data": {
        "export": _Entry("datasets", "export_command", "Write finished rollouts to a file."),
        "import": _Entry("datasets", "import_command", "Read rollouts from files into a store."),
        "backup": _Entry("files", "backup", "Copy the data file.", calls=False),
        "restore": _Entry("files", "restore", "Put a backup in place.", calls=False),
        "check": _Entry("files", "check", "Look for damage in the data file.", calls=False),
        "vacuum": _Entry("files", "vacuum", "Shrink the data file.", calls=False),
        "migrate": _Entry(
            "migrate", "migrate", "Copy a namespace to a database or back.", calls=False
        ),
    },
    "More": {
        "token": _Entry("tokens", "token", "Create, list and revoke access tokens.", calls=False),
        "completion": _Entry(
            "completion", "completion", "Print the completion script of a shell.", calls=False
        ),
    },
}
ENTRIES = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class _Commands(click.Group):
    """The commands, each imported when it is used. Help and completion need none of them."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(ENTRIES)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        entry = ENTRIES.get(cmd_name)
        if entry is None:
            return None
        if entry.calls:
            # gRPC reads it when it is imported. It would log failed handshakes beside the error of the command.
            os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # Imports leave little garbage: looking for it takes a tenth of their time.
        gc.disable()
        try:
            module = import_module(f"{_PACKAGE}.{entry.module}")
        except ModuleNotFoundError as error:
            if (error.name or "").startswith(NAME):
                raise
            raise click.ClickException(
                f"`{NAME} {cmd_name}` needs the server, which is not installed ({error.name} is "
                f"missing): pip install '{NAME}[server]'"
            ) from None
        finally:
            gc.enable()
        found: click.Command = getattr(module, entry.attribute)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in ENTRIES and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], ENTRIES, 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            ctx.fail(f"there is no command {args[0]!r}{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        for heading, entries in SECTIONS.items():
            with formatter.section(f"{heading}"):
                formatter.write_dl([(name, entry.help) for name, entry in entries.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        names = [name for name in ENTRIES if name.startswith(incomplete)]
        found = [CompletionItem(name, help=ENTRIES[name].help) for name in names]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


def _of_files(command: str) -> set[str]:
    """Return which options of the connection a command that calls no server has too."""
    return (
        {"namespace"} if command in ("backup", "restore", "check", "vacuum", "migrate") else set()
    )


@click.group(
    NAME,
    cls=_Commands,
    params=connection.options(),
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="The options above may also follow a command. docs/command-line.md describes formats and exit codes.",
)
@click.version_option(package_name=NAME, prog_name=NAME, message="%(prog)s %(version)s")
@click.pass_context
def app(context: click.Context, /, **given: Any) -> None:
    """Control plane and trace store of agent reinforcement learning, over gRPC."""
    told = {name: value for name, value in given.items() if value is not None}
    command = context.invoked_subcommand or ""
    if told.keys() - _of_files(command) and command in ENTRIES and not ENTRIES[command].calls:
        name = next(iter(told.keys() - _of_files(command)))
        flag = f"--{name.replace('_', '-')}"
        raise click.UsageError(f"{flag} goes with commands that call a server, not with {command}")
    context.default_map = dict.fromkeys(ENTRIES, told)
