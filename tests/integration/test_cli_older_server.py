"""Commands at a server of a version before namespaces and DeleteRollouts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from lightningstore.service.rpc import handlers
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    ListRolloutsResponse,
)
from lightningstore.v1.statistics_pb2 import GetServerInfoResponse

from tests.integration.process import run

pytestmark = pytest.mark.asyncio


class OlderServer(grpc.GenericRpcHandler):
    """The server, which is the handler of its own calls. It ignores what metadata names."""

    def __init__(self) -> None:
        self.enqueued: list[EnqueueRolloutsRequest] = []
        self.server = grpc.aio.server()
        self.server.add_generic_rpc_handlers((self,))
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call that it has."""
        answers = {
            "GetServerInfo": GetServerInfoResponse(version="0.1.0", store_id="store-1"),
            "ListRollouts": ListRolloutsResponse(),
            "EnqueueRollouts": EnqueueRolloutsResponse(),
        }
        service, _, name = (handler_call_details.method or "").strip("/").partition("/")
        if service != handlers.SERVICE.full_name or name not in answers:
            return None

        async def answer(request: bytes, _: Any) -> bytes:
            if name == "EnqueueRollouts":
                self.enqueued.append(EnqueueRolloutsRequest.FromString(request))
            return answers[name].SerializeToString()

        return grpc.unary_unary_rpc_method_handler(answer)


@pytest_asyncio.fixture
async def older() -> AsyncIterator[OlderServer]:
    """A server that runs."""
    older = OlderServer()
    await older.server.start()
    yield older
    await older.server.stop(0)


@pytest.mark.parametrize("command", [["enqueue", "1"], ["rollouts"], ["spans", "ro-1"]])
async def test_commands_in_a_namespace_are_not_carried_out_in_the_only_store(
    older: OlderServer, tmp_path: Path, command: list[str]
) -> None:
    where = ("--address", older.address, "--namespace", "run-1")
    code, _, errors = await run(*command, *where, folder=tmp_path)
    assert (code, older.enqueued) == (1, [])
    assert f"the server at {older.address} is older than namespaces" in errors
    assert "'run-1'" in errors


async def test_commands_in_the_default_namespace_work(older: OlderServer, tmp_path: Path) -> None:
    where = {"LIGHTNINGSTORE_ADDRESS": older.address, "LIGHTNINGSTORE_NAMESPACE": "default"}
    assert (await run("rollouts", folder=tmp_path, **where))[0] == 0


@pytest.mark.parametrize(
    "command",
    [["namespaces"], ["namespaces", "create", "a"], ["servers"], ["delete", "r", "--yes"]],
)
async def test_commands_that_the_server_lacks_tell_that_it_is_older(
    older: OlderServer, tmp_path: Path, command: list[str]
) -> None:
    code, _, errors = await run(*command, "--address", older.address, folder=tmp_path)
    assert code == 1
    assert "is older than this" in errors
