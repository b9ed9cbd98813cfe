"""grpcurl and ghz, as `make grpc-tools` builds them, against a server: all they know of it is its reflection."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.process import Process, serve

pytestmark = pytest.mark.asyncio

FOLDER = Path(__file__).parents[2] / "build" / "go-bin"
SERVICE = "lightningstore.v1.LightningStoreService"
SECONDS = 60


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Process]:
    """A running server."""
    running = await serve("--port", "0", "--backend", "memory", folder=tmp_path)
    yield running
    await running.stop()


async def tool(name: str, *arguments: str) -> str:
    """Run a tool and return its output; skips the test where it was not built."""
    path = FOLDER / name
    if not path.exists() and not os.environ.get("REQUIRE_ALL"):
        pytest.skip(f"no {path}: make grpc-tools, which needs Go, builds it")
    process = await asyncio.create_subprocess_exec(
        path, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def grpcurl(server: Process, *arguments: str, data: str | None = None) -> str:
    """Run grpcurl on a server: flags come before the address, a verb and a name after it."""
    flags = ["-plaintext", *(["-d", data] if data is not None else [])]
    return await tool("grpcurl", *flags, server.address, *arguments)


async def test_grpcurl_lists_describes_and_calls(server: Process) -> None:
    services = (await grpcurl(server, "list")).split()
    assert {SERVICE, "grpc.reflection.v1.ServerReflection", "grpc.health.v1.Health"} <= set(
        services
    )
    methods = (await grpcurl(server, "list", SERVICE)).split()
    assert f"{SERVICE}.EnqueueRollouts" in methods
    for symbol in (*methods, "grpc.health.v1.Health.Check", f"{services[-1]}"):
        assert symbol in await grpcurl(server, "describe", symbol)
    for symbol in ("Rollout", "Rollout.input_json", "RolloutStatus", "ROLLOUT_STATUS_RUNNING"):
        assert symbol in await grpcurl(server, "describe", f"lightningstore.v1.{symbol}")
    data = json.dumps({"rollouts": [{"inputJson": "e30=", "mode": "ROLLOUT_MODE_TRAIN"}]})
    for path in (f"{SERVICE}/EnqueueRollouts", f"{SERVICE}.EnqueueRollouts"):
        (rollout,) = json.loads(await grpcurl(server, path, data=data))["rollouts"]
        assert rollout["status"] == "ROLLOUT_STATUS_QUEUING"
    answer = await grpcurl(server, "grpc.health.v1.Health/Check")
    assert json.loads(answer) == {"status": "SERVING"}


@pytest.mark.parametrize("call", [f"{SERVICE}.EnqueueRollouts", f"{SERVICE}/EnqueueRollouts"])
async def test_ghz_calls_a_method_by_its_name(server: Process, call: str) -> None:
    output = await tool(
        "ghz",
        *("--insecure", "--call", call, "--total", "20", "--concurrency", "2", "--format", "json"),
        *("--data", json.dumps({"rollouts": [{"input_json": "e30="}]}), server.address),
    )
    assert json.loads(output)["statusCodeDistribution"] == {"OK": 20}
