"""The getting-started section of README.md: a server, a runner and an algorithm, run as printed."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.integration.process import ENVIRONMENT, serve

pytestmark = pytest.mark.asyncio

README = Path(__file__).parents[2] / "README.md"
#: The address that README uses.
PRINTED = "127.0.0.1:4747"
SECONDS = 30


def blocks(kind: str) -> list[str]:
    """Return the code blocks of a kind, in their order."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)


async def start(program: str, address: str, folder: Path) -> asyncio.subprocess.Process:
    """Start a program of README against a server."""
    assert PRINTED in program
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program.replace(PRINTED, address),
        cwd=folder,
        env=ENVIRONMENT,
        stdout=asyncio.subprocess.PIPE,
    )


async def test_the_five_minutes_print_what_the_page_says(tmp_path: Path) -> None:
    runner_program, algorithm_program = blocks("python")
    server = await serve("--port", "0", folder=tmp_path)
    try:
        runner = await start(runner_program, server.address, tmp_path)
        algorithm = await start(algorithm_program, server.address, tmp_path)
        printed, _ = await asyncio.wait_for(algorithm.communicate(), SECONDS)
        # Rollouts finish in any order where a runner works on several.
        assert sorted(printed.decode().splitlines()) == sorted(blocks("text")[0].splitlines())
        runner.send_signal(signal.SIGINT)
        await asyncio.wait_for(runner.communicate(), SECONDS)
    finally:
        assert await server.stop() == 0
