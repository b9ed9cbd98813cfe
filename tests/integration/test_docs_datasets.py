"""The snippets of docs/datasets.md, run as they are printed, in their order."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.contract.conftest import World
from tests.contract.helpers import finish
from tests.finished import fill

pytestmark = pytest.mark.asyncio

PAGE = Path(__file__).parents[2] / "docs" / "datasets.md"


async def test_the_page_runs_as_printed(tmp_path: Path) -> None:
    world = World("memory-grpc", tmp_path)
    await world.start()
    assert world.server is not None
    await fill(world.store)
    await world.advance(1)
    await world.store.enqueue_rollout({"task": "add"}, rollout_id="ro-newest")
    await finish(world, "ro-newest")
    snippets = re.findall(
        r"^```(sh|python)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL
    )
    assert [kind for kind, _ in snippets] == ["sh", "python", "sh", "sh"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "LIGHTNINGSTORE_ADDRESS": world.server.address}
    told = ""
    for kind, text in snippets:
        command = ["bash", "-eu", "-c", text]
        if kind == "python":
            command = [sys.executable, "-c", text]
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        told += out.decode()
        assert process.returncode == 0, told
    await world.stop()
    assert '{"rollout_id":"ro-agentops"' in told
    assert "ro-newest None 0 spans" in told
    assert "{'task': 'add'} ['succeeded']" in told
    assert "moved.jsonl: 0 rollouts imported, 1 known" in told
    assert "trace.html: " in told
    assert {"train.jsonl", "all.parquet", "recent.jsonl", "moved.jsonl", "trace.html"} <= {
        file.name for file in tmp_path.iterdir()
    }
