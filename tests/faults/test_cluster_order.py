"""Histories of clients that use several servers at once, while namespaces move: as if one call came after the other."""

from __future__ import annotations

import asyncio
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from lightningstore.v1.cluster_pb2 import MoveNamespaceRequest
from lightningstore.v1.cluster_pb2_grpc import ClusterServiceStub
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.cluster import SHORT_LEASE, ServerCluster
from tests.faults.histories import CLIENTS, ROLLOUTS, beginning, record
from tests.faults.linear import linearizable
from tests.faults.test_order import OPTIONS
from tests.postgres import running

pytestmark = pytest.mark.asyncio

#: Maximum pause of a client before a call: a history must take as long as the owner takes to change.
PAUSE_SECONDS = 0.2
#: How the owner changes, or the database fails, during a history.
TROUBLES = ("move", "stop", "kill", "crash", "move", "terminate", "cut", "")


class Anywhere:
    """Sends each call to a random server, also the repeats of a call."""

    def __init__(self, channels: list[grpc.Channel], seed: int) -> None:
        self._stubs = [LightningStoreServiceStub(channel) for channel in channels]
        self._dice = random.Random(seed)

    def __getattr__(self, method: str) -> Any:
        def call(request: Any, timeout: float) -> Any:
            # A stopped server answers nothing: the next one is asked soon.
            return getattr(self._dice.choice(self._stubs), method)(request, timeout=timeout / 4)

        return call


async def make_trouble(cluster: ServerCluster, dice: random.Random, trouble: str) -> None:
    """Have the default namespace change its owner, or break connections."""
    owner = await cluster.owner("default") or cluster.servers[0]
    if trouble == "move":
        others = [server for server in cluster.servers if server is not owner]
        async with grpc.aio.insecure_channel(owner.address) as channel:
            request = MoveNamespaceRequest(name="default", address=dice.choice(others).address)
            await ClusterServiceStub(channel).MoveNamespace(request)
    elif trouble == "stop":
        await cluster.pause(owner, SHORT_LEASE + dice.uniform(-0.3, 1.0))
    elif trouble == "kill":
        await cluster.restart(owner, signal.SIGKILL)
    elif trouble == "terminate":
        await cluster.restart(owner, signal.SIGTERM)
    elif trouble == "cut":
        await cluster.terminate_back_ends()
    elif trouble == "crash":
        await cluster.crash_database(0.0)


async def test_histories_of_all_servers_are_linearizable_while_owners_change(
    tmp_path: Path, dice: random.Random, tries
) -> None:
    loop = asyncio.get_running_loop()
    unanswered = calls = 0
    troubles: Counter[str] = Counter()
    with running() as postgres:
        async with ServerCluster(tmp_path, postgres, lease_seconds=SHORT_LEASE) as cluster:
            channels = [grpc.insecure_channel(each, OPTIONS) for each in cluster.addresses]
            for turn in range(tries("histories of servers")):
                trouble = TROUBLES[turn % len(TROUBLES)]
                troubles[trouble or "none"] += 1
                names = [f"h{turn}-{n}" for n in range(ROLLOUTS)]
                stubs = [Anywhere(channels, dice.getrandbits(32)) for _ in range(CLIENTS)]

                def disturb(trouble: str = trouble) -> None:
                    made = make_trouble(cluster, dice, trouble)
                    asyncio.run_coroutine_threadsafe(made, loop).result()

                history = await asyncio.to_thread(
                    record, stubs, dice, names, disturb, PAUSE_SECONDS
                )
                calls += len(history)
                unanswered += sum(operation.answer is None for operation in history)
                assert linearizable(beginning(names), history), (trouble, history)
            for channel in channels:
                channel.close()
            await cluster.check_commits()
    print(f"{dict(troubles)}: {calls} calls, {unanswered} without an answer")
