"""`lightningstore serve`: starts a server, says how to use it, and stops it on a signal."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
from importlib.metadata import version
from typing import Any, Literal, get_args, get_origin

import click
from lightningstore.service.cli import units
from lightningstore.service.cluster.processes import Process
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.rules.errors import Misconfigured, StorageUnusable
from lightningstore.service.server import logs, tuning
from lightningstore.service.server.addresses import AddressInUse, bracketed
from lightningstore.service.server.config import Config
from lightningstore.service.server.gate import Gate, open_gate
from lightningstore.service.server.processes import Processes, StartFailed
from lightningstore.service.server.server import start_server
from pydantic import ValidationError

PREFIX = str(Config.model_config["env_prefix"])
#: An address of documentation, which nothing is sent to: it only chooses the interface.
_ELSEWHERE = ("192.0.2.1", 9)


def _options() -> list[click.Parameter]:
    """Return an option for each field of Config; what is not given is left to it."""
    options: list[click.Parameter] = []
    for name, field in Config.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        default = "none" if field.default is None else field.default
        shown = f"[env var: {PREFIX}{name.upper()}; default: {default}]"
        help_text = f"{field.description} {shown}"
        if get_origin(field.annotation) is Literal:
            kind: Any = click.Choice(get_args(field.annotation))
        else:
            kind = str  # Config knows the types, and says what is wrong with a value
        if field.annotation in (bool, bool | None):
            options.append(click.Option([f"{flag}/--no-{flag[2:]}"], default=None, help=help_text))
        else:
            options.append(click.Option([flag], type=kind, default=None, help=help_text))
    return options


def _serve_command(**given: Any) -> None:
    """Start a server. SIGTERM and Ctrl-C stop it: open calls end, and what was answered is stored."""
    try:
        config = Config(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise click.UsageError(_one_line(error), click.get_current_context()) from None
    tuning.keep_freed_memory()
    logs.set_up(config.log_level, as_json=config.log_json)
    if config.database_url is not None and config.advertise is None:
        config = config.model_copy(update={"advertise": reachable(config.host)})
    process = Process.current()
    try:
        if process is not None:
            tuning.run(_serve_as(process, config))
        elif config.processes > 1:
            tuning.run(_serve_processes(config))
        else:
            tuning.run(_serve(config))
    except StartFailed:
        raise SystemExit(1) from None
    except (StorageUnusable, AddressInUse, Misconfigured) as error:
        raise click.ClickException(str(error)) from None


def _one_line(error: ValidationError) -> str:
    problems = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]).replace("_", "-")
        # A URL may contain a password.
        given = f", got {problem['input']!r}" if name and not name.endswith("url") else ""
        # pydantic begins the text of a ValueError with this.
        text = problem["msg"].removeprefix("Value error, ")
        problems.append(f"{'--' + name + ': ' if name else ''}{text}{given}")
    return "; ".join(problems)


async def _serve(config: Config) -> None:
    clock = SystemClock()
    begun = clock.monotonic()
    server = await start_server(config, clock)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    data = server.data
    count = len(server.directory)
    contents = f"{data}, {count} namespaces" if count > 1 else data
    _say(*_greeting(server.address, contents, server.gate, config, server.http_port))
    tuning.settle_garbage()
    await stop.wait()
    grace = units.span(config.grace)
    _say(f"stopping: open calls have {grace} to end")
    all_ended = await server.stop(config.grace)
    uptime = f"served for {units.span(clock.monotonic() - begun)}"
    if not server.is_usable:  # a supervisor must not take this for a good end
        _say(f"stopped, {uptime}: the data file was unusable at the end, the log says more")
        raise SystemExit(1)
    calls = "all calls had ended" if all_ended else f"open calls were cut off after {grace}"
    _say(f"stopped, {uptime}: {calls}, {data}")


async def _serve_as(process: Process, config: Config) -> None:
    """Serve as one of several processes, whose parent does the talking."""
    server = await start_server(config)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_reader(process.parent, stop.set)  # readable once the parent has ended
    tuning.settle_garbage()
    os.write(process.ready, b"1")
    os.close(process.ready)
    await stop.wait()
    loop.remove_reader(process.parent)
    await server.stop(config.grace)


async def _serve_processes(config: Config) -> None:
    """Serve with several processes, and start again those that end."""
    clock = SystemClock()
    begun = clock.monotonic()
    gate = open_gate(config, clock)
    host = config.advertise or reachable(config.host)
    processes = Processes(config, host)
    data = f"data in {config.data}, durability {config.durability}, {config.processes} processes"
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, processes.stop)

    def ready() -> None:
        address = f"{bracketed(config.host)}:{processes.port}"
        _say(*_greeting(address, data, gate, config, processes.http_port))

    await processes.run(ready)
    uptime = units.span(clock.monotonic() - begun)
    if not processes.is_clean:
        _say(f"stopped after {uptime}: not all processes ended well, the log says more")
        raise SystemExit(1)
    _say(f"stopped after {uptime}: {data}")


def _say(*lines: str) -> None:
    """Print lines. Whoever started the server may have closed stdout since."""
    try:
        click.echo("\n".join(lines))
        sys.stdout.flush()
    except OSError:
        pass


def _greeting(listening: str, data: str, gate: Gate, config: Config, http_port: int) -> list[str]:
    scheme = "https://" if gate.credentials else ""
    host = reachable(config.host)
    address = f"{scheme}{host}:{listening.rpartition(':')[2]}"
    link = [f"console: {scheme or 'http://'}{host}:{http_port}"] if http_port else []
    return [
        f"lightningstore {version('lightningstore')} on {listening}, {data}, access: {gate.description}",
        f"clients: export LIGHTNINGSTORE_ADDRESS={address}",
        *link,
        "next: lightningstore enqueue '{\"question\": 2}', start a runner, lightningstore rollouts",
    ]


def reachable(host: str) -> str:
    """Return the host at which clients reach a server that listens on `host`.

    In place of a wildcard it is the name of this machine, or its address where the name leads nowhere else.
    """
    bare = host.strip("[]")
    try:
        address = ipaddress.ip_address(bare)
    except ValueError:
        return host
    if not address.is_unspecified:
        return f"[{bare}]" if address.version == 6 else bare
    name = socket.gethostname()
    try:
        found = ipaddress.ip_address(socket.gethostbyname(name))
    except (OSError, ValueError):
        found = None
    return name if found is not None and not found.is_loopback else _own_address()


def _own_address() -> str:
    """Return this machine's address towards the network; loopback if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


serve = click.Command(
    "serve", params=_options(), callback=_serve_command, help=_serve_command.__doc__
)
