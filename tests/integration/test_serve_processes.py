"""`lightningstore serve --processes`: one port, several processes, and none of them is missed when it is killed."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import grpc.aio
import psutil
import pytest
from lightningstore.client import AsyncLightningStore
from lightningstore.client.errors import UnavailableError

from tests.integration.process import Process, run, serve
from tests.namespaced import Caller

pytestmark = pytest.mark.asyncio

NAMES = ("default", "a", "b", "c", "d", "e")


async def started(folder: Path, *options: str) -> Process:
    """Start a server of three processes."""
    return await serve("--data", "data", "--processes", "3", "--port", "0", *options, folder=folder)


async def create(server: Process, *names: str) -> None:
    """Create namespaces."""
    async with grpc.aio.insecure_channel(server.address) as channel:
        for name in names:
            await Caller(channel).create(name)


def children(server: Process) -> list[psutil.Process]:
    """Return the processes that serve."""
    return psutil.Process(server.process.pid).children()


async def test_every_process_answers_for_every_namespace(tmp_path: Path) -> None:
    server = await started(tmp_path)
    assert "3 processes" in server.first_line
    assert len(children(server)) == 3
    await create(server, *NAMES[1:])
    ids = {}
    for name in NAMES:
        async with AsyncLightningStore(server.address, namespace=name) as store:
            ids[name] = (await store.enqueue_rollouts([{"input": {"name": name}}]))[0].rollout_id
    owners = set()
    for _ in range(
        8
    ):  # each client has a connection of its own, which leads to any of the processes
        for name, rollout_id in ids.items():
            async with AsyncLightningStore(server.address, namespace=name) as store:
                assert (await store.get_rollout(rollout_id)).input == {"name": name}
                owners.add((await store.get_server_info()).owner)
    assert len(owners) > 1
    assert await server.stop() == 0
    assert sorted(path.name for path in (tmp_path / "data").glob("*.db")) == sorted(
        f"{name}.db" for name in NAMES
    )


async def test_a_killed_process_starts_again_with_all_its_namespaces(tmp_path: Path) -> None:
    server = await started(tmp_path)
    await create(server, *NAMES[1:])
    stored: dict[str, list[str]] = {name: [] for name in NAMES}

    async def write(name: str, count: int) -> None:
        async with AsyncLightningStore(server.address, namespace=name) as store:
            for number in range(count):
                rollouts = await store.enqueue_rollouts([{"input": {"number": number}}])
                stored[name].append(rollouts[0].rollout_id)

    writing = [asyncio.create_task(write(name, 100)) for name in NAMES]
    for killed in range(3):
        while sum(map(len, stored.values())) < 100 * (killed + 1):
            await asyncio.sleep(0.01)
        serving = children(server)
        serving[killed % len(serving)].send_signal(signal.SIGKILL)
    await asyncio.gather(*writing)
    for name, ids in stored.items():
        async with AsyncLightningStore(server.address, namespace=name) as store:
            statistics = await store.get_statistics()
            assert statistics.queue_depth == len(ids) == 100
    assert await server.stop() == 0


async def test_children_end_with_their_parent(tmp_path: Path) -> None:
    server = await started(tmp_path)
    serving = children(server)
    await server.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(serving, timeout=15)
    assert not alive


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--processes", "2"), "--processes requires --data"),
        (("--processes", "2", "--data", "d", "--backend", "memory"), "sqlite back end"),
        (("--data", "d", "--db", "x.db"), "--data and --db exclude each other"),
    ],
)
async def test_wrong_combinations_are_usage_errors(
    tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, _, errors = await run("serve", "--port", "0", *options, folder=tmp_path)
    assert code == 2
    assert message in errors


async def test_a_file_that_is_damaged_costs_only_its_namespace(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "default.db").write_bytes(b"no database, " * 1000)
    server = await started(tmp_path)
    await create(server, "a")
    async with AsyncLightningStore(server.address, namespace="a") as store:
        await store.enqueue_rollouts([{"input": 1}])
    async with AsyncLightningStore(server.address, timeout=3) as store:
        with pytest.raises(UnavailableError, match="default"):
            await store.enqueue_rollouts([{"input": 1}])
    assert await server.stop() == 0


async def test_one_process_with_a_folder_needs_no_parent(tmp_path: Path) -> None:
    server = await serve("--data", "data", "--port", "0", folder=tmp_path)
    await create(server, "a")
    async with AsyncLightningStore(server.address, namespace="a") as store:
        await store.enqueue_rollouts([{"input": 1}])
    assert not children(server)
    assert await server.stop() == 0
    assert sorted(path.name for path in (tmp_path / "data").glob("*.db")) == ["a.db", "default.db"]
