"""The commands of docs/http.md, run as they are printed."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from pathlib import Path

import pytest

from tests.integration.process import ENVIRONMENT, serve
from tests.integration.test_http_port_start import link

PAGE = Path(__file__).parents[2] / "docs/http.md"
PRINTED = "http://127.0.0.1:4748"
CODE = (Path(__file__).parents[2] / "client/typescript/test/web.test.ts").read_text()


def steps() -> list[tuple[str, str]]:
    """Return the commands of the page, each with what it prints."""
    found: list[tuple[str, str]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line)
    return found


@pytest.mark.skipif(
    shutil.which("curl") is None and not os.environ.get("REQUIRE_ALL"),
    reason="curl is not installed",
)
@pytest.mark.asyncio
async def test_commands_print_what_the_page_says(tmp_path: Path) -> None:
    process = await serve("--port", "0", folder=tmp_path, http=True)
    url = await link(process)
    assert len(steps()) == 7
    for command, printed in steps():
        assert PRINTED in command
        shell = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            command.replace(PRINTED, url),
            env=ENVIRONMENT,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await asyncio.wait_for(shell.communicate(), 20)
        pattern = ".*".join(re.escape(part) for part in printed.split("…"))
        assert re.fullmatch(pattern, out.decode("latin-1"), re.DOTALL), (command, out)
    assert await process.stop() == 0


def test_program_of_the_page_is_what_the_client_of_connect_is_tested_with() -> None:
    (program,) = re.findall(r"^```ts\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert "createConnectTransport" in program
    for line in program.splitlines():
        if line.startswith("import"):
            module = re.search(r'from ("[^"]+")', line)
            assert module is not None
            assert module[1] in CODE
