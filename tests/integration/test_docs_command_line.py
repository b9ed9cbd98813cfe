"""The first ten minutes of docs/command-line.md, run on a terminal as they are printed."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from tests.integration.process import COMMAND, ENVIRONMENT, serve
from tests.integration.test_readme import PRINTED, blocks

pytestmark = pytest.mark.asyncio

PAGE = Path(__file__).parents[2] / "docs/command-line.md"
RUNNER = "python runner.py &"
COLUMNS = 100
SECONDS = 30
ID = re.compile(r"\b(?:ro-[0-9a-f]{12}|at-[0-9a-f]{8})\b")
#: What is another one each time: workers, times, ages and durations.
VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z \(\w+ ago\)"), "TIME"),
    (re.compile(r"\+?\b[\d.]+ ?(?:µs|ms|s|min|ns)\b"), "SPAN"),
    (re.compile(r"\+0,"), "SPAN,"),
    (re.compile(r"(?<=  )-?(?:host-7-worker|WORKER)(?=$|  )"), "WORKER"),
    (re.compile(r"…"), ""),
)


def steps() -> list[tuple[str, list[str]]]:
    """Return the commands of the page, each with the lines that it prints."""
    found: list[tuple[str, list[str]]] = []
    text = PAGE.read_text()
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


class Session:
    """A terminal in which the commands of the page are run."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        #: The ids that are here what those of the page are there.
        self.ids: dict[str, str] = {}

    async def run(self, command: str) -> list[str]:
        for printed, own in self.ids.items():
            command = command.replace(printed, own)
        mine, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        environment: dict[str, Any] = {
            **ENVIRONMENT,
            "LIGHTNINGSTORE_ADDRESS": self.address,
            "PATH": f"{Path(COMMAND).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            "TERM": "xterm",
        }
        environment.pop("COLUMNS", None)
        process = await asyncio.create_subprocess_shell(
            command, stdin=its, stdout=its, stderr=its, env=environment, cwd=self.folder
        )
        os.close(its)
        shown = await asyncio.wait_for(asyncio.to_thread(read, mine), SECONDS)
        await process.wait()
        progress = re.compile(r"\r[^\r\n]*\x1b\[K")
        return progress.sub("", shown.replace("\r\n", "\n")).splitlines()

    def learn(self, printed: list[str], own: list[str]) -> None:
        """Take down which ids here are which ids of the page."""
        self.ids.update(
            zip(ID.findall("\n".join(printed)), ID.findall("\n".join(own)), strict=False)
        )


def read(terminal: int) -> str:
    shown = b""
    while True:
        try:
            block = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            block = b""
        if not block:
            os.close(terminal)
            return shown.decode()
        shown += block


def alike(lines: list[str], worker: str) -> list[str]:
    """Return lines without what is another one each time, nor how far apart their words are."""
    found = []
    for line in lines:
        text = ID.sub("ID", line.replace(worker, "host-7-worker"))
        for pattern, word in VARYING:
            text = pattern.sub(word, text)
        found.append(" ".join(text.split()))
    return found


async def test_the_first_ten_minutes_print_what_the_page_says(tmp_path: Path) -> None:
    server = await serve("--port", "0", folder=tmp_path)
    session = Session(server.address, tmp_path)
    runner = None
    program = blocks("python")[0]
    assert PRINTED in program
    (tmp_path / "runner.py").write_text(
        program.replace(PRINTED, server.address).replace(
            "agent)", 'agent, worker_id="host-7-worker")'
        )
    )
    try:
        for command, printed in steps():
            if command == RUNNER:
                runner = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "runner.py",
                    cwd=tmp_path,
                    env=ENVIRONMENT,
                    stderr=asyncio.subprocess.DEVNULL,
                )
                continue
            shown = await session.run(command)
            if command.startswith("lightningstore enqueue"):
                session.learn(printed, shown)
            order = sorted if " wait " in command else list  # finishes come in any order
            assert order(alike(shown, "host-7-worker")) == order(alike(printed, "host-7-worker")), (
                command
            )
        assert (tmp_path / "sums.jsonl").read_text().count("\n") == 2
    finally:
        if runner is not None:
            runner.send_signal(signal.SIGINT)
            await asyncio.wait_for(runner.communicate(), SECONDS)
        assert await server.stop() == 0
