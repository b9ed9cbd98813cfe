"""`lightningstore demo`: a server in a temporary folder with a small training, to look at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import webbrowser
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from lightningstore.service.cli.demo_training import RUNS, train
from lightningstore.service.server import logs, tuning
from lightningstore.service.server.addresses import AddressInUse
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, start_server

#: Seconds that open calls have to end, such as the streams of a browser.
GRACE = 0.5
PREFIX = "lightningstore-demo-"


def _demo_command(seconds: float | None, *, browser: bool) -> None:
    """Show a small training: start a server in a temporary folder, train two runs, open the console.

    Nothing else is needed, and nothing remains: Ctrl-C ends the demo and removes the folder.
    """
    # They are about other servers.
    for name in [name for name in os.environ if name.startswith("LIGHTNINGSTORE_")]:
        del os.environ[name]
    logs.set_up("error", as_json=False)
    tuning.run(_demo(seconds, browser=browser))


async def _demo(seconds: float | None, *, browser: bool) -> None:
    with TemporaryDirectory(prefix=PREFIX) as folder:
        server = await _started(Path(folder) / "demo.db")
        try:
            training = asyncio.create_task(train(server.address))
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, training.cancel)
            if seconds is not None:
                loop.call_later(seconds, training.cancel)
            link = f"http://127.0.0.1:{server.http_port}"
            click.echo("\n".join(_greeting(server.address, link, folder)))
            sys.stdout.flush()
            if browser and _has_browser():
                await asyncio.to_thread(webbrowser.open, link)
            with contextlib.suppress(asyncio.CancelledError):
                await training
        finally:
            await server.stop(GRACE)
    click.echo(f"stopped, removed {folder}")


async def _started(db: Path) -> Server:
    """Return a server on the usual ports, or on free ones if another server has them."""
    options: dict[str, Any] = {"db": db, "durability": "relaxed", "keep_resource_versions": 0}
    config = Config(**options)
    try:
        return await start_server(config)
    except AddressInUse:
        return await start_server(config.model_copy(update={"port": 0}))


def _greeting(address: str, link: str, folder: str) -> list[str]:
    return [
        f"lightningstore demo on {address}: a small training in the namespaces {' and '.join(RUNS)}",
        f"console: {link}",
        f"clients: export LIGHTNINGSTORE_ADDRESS={address}",
        "next: lightningstore rollouts, lightningstore series, lightningstore trace latest",
        f"Ctrl-C ends the demo and removes its data ({folder})",
    ]


def _has_browser() -> bool:
    """Return whether there is a browser with a window: one in this terminal would cover the link."""
    windows = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER")
    return sys.platform in ("darwin", "win32") or any(os.environ.get(name) for name in windows)


demo = click.Command(
    "demo",
    params=[
        click.Option(
            ["--browser/--no-browser"], default=True, help="Open the console (default: yes)."
        ),
        click.Option(
            ["--seconds"],
            type=click.FloatRange(min=0),
            metavar="N",
            help="Seconds after which the demo ends (default: at Ctrl-C).",
        ),
    ],
    callback=_demo_command,
    help=_demo_command.__doc__,
)
