"""Failing writes and syncs, and a full disk: an error for the caller, nothing lost, and back by itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
from pathlib import Path

import grpc
import pytest
from lightningstore.client import AsyncLightningStore, LightningStore, LightningStoreError
from lightningstore.v1 import rollout_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub

from tests.faults.lab import Lab, until

HURT = ["write", "sync", "write full", "sync full"]


def enqueue(stub: LightningStoreServiceStub, name: str, size: int = 10) -> bool:
    """Enqueue a rollout; whether it was answered. The error has to be UNAVAILABLE, with a reason."""
    spec = rollout_pb2.RolloutSpec(rollout_id=name, input_json=b'"' + b"x" * size + b'"')
    try:
        stub.EnqueueRollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec]), timeout=10)
    except grpc.RpcError as error:
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        return False
    return True


def ids(address: str) -> set[str]:
    with LightningStore(address) as store:
        return {r.rollout_id for r in store.iter_rollouts()}


@pytest.mark.parametrize("fault", HURT)
def test_failing_disk_is_told_and_survived(lab: Lab, dice: random.Random, tries, fault) -> None:
    answered: set[str] = set()
    tried: set[str] = set()
    lab.start(breakable=True)
    with grpc.insecure_channel(lab.address) as channel:
        stub = LightningStoreServiceStub(channel)
        for turn in range(tries("commit failures")):
            for n in range(dice.randrange(1, 4)):
                name = f"{turn}-before-{n}"
                assert enqueue(stub, name)
                answered.add(name)
            lab.hurt(fault)
            tried.add(f"{turn}-during")
            assert not enqueue(stub, f"{turn}-during")
            assert lab.healthy(channel) is False
            assert not enqueue(stub, f"{turn}-still")
            lab.heal()
            until("healthy again", lambda: lab.healthy(channel))
            assert enqueue(stub, f"{turn}-after")
            answered.add(f"{turn}-after")
            found = ids(lab.address)
            assert answered <= found <= answered | tried
    lab.kill()
    assert lab.integrity() == "ok"
    lab.start()
    assert answered <= ids(lab.address) <= answered | tried


def test_waiters_are_told_when_the_disk_fails(lab: Lab) -> None:
    async def main() -> None:
        async with AsyncLightningStore(lab.address, timeout=5) as store:
            (rollout,) = await store.enqueue_rollouts([{"input": 1}])
            waiting = store.wait_for_rollouts([rollout.rollout_id])
            await waiting.registered()
            lab.hurt("sync")
            with pytest.raises(LightningStoreError):
                await store.with_timeout(1).cancel_rollouts([rollout.rollout_id])
            lab.heal()
            await store.cancel_rollouts([rollout.rollout_id])  # the client waits until it can
            assert [r.status.value async for r in waiting] == ["cancelled"]  # and asks again

    lab.start(breakable=True)
    asyncio.run(main())


@pytest.fixture
def small_disk(tmp_path: Path):
    """A file system of 8 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, check=False).returncode != 0:
        pytest.skip("needs the right to mount a file system; the failing calls above need none")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_full_disk_is_survived_once_there_is_space(lab: Lab, small_disk: Path) -> None:
    lab.db = small_disk / "store.db"
    ballast = small_disk / "ballast"
    lab.start()
    answered: set[str] = set()
    with grpc.insecure_channel(lab.address) as channel:
        stub = LightningStoreServiceStub(channel)
        ballast.write_bytes(bytes(4 << 20))
        for n in range(100):
            if not enqueue(stub, f"r-{n}", 100_000):
                break
            answered.add(f"r-{n}")
        else:
            raise AssertionError("8 MiB took 10 MB")
        refused = f"r-{n}"
        assert lab.healthy(channel) is False
        ballast.unlink()
        until("healthy again", lambda: lab.healthy(channel))
        assert answered <= ids(lab.address) <= answered | {refused}
        assert enqueue(stub, "after")
    assert lab.end() == 0
    lab.start()
    assert answered | {"after"} <= ids(lab.address) <= answered | {"after", refused}


def test_slow_disk_slows_streams_down_and_refuses_calls_in_bounded_memory(lab: Lab) -> None:
    """Each sync takes 50 ms and more while spans pour in: what waits for the disk has a limit."""
    limit = 8 << 20

    async def main() -> None:
        async with AsyncLightningStore(lab.address, timeout=60) as store:
            claimed = [await store.start_rollout(1) for _ in range(8)]
            lab.hurt("slow sync")
            started = time.monotonic()
            before = lab.view().memory_info().rss
            most, refused = 0, 0
            streams = [asyncio.create_task(pour(store, r)) for r in claimed]
            while not all(task.done() for task in streams):
                most = max(most, lab.view().memory_info().rss - before)
                try:
                    await store.with_timeout(0.2).enqueue_rollout("x" * 100_000)
                except LightningStoreError as error:
                    if error.reason.endswith("BUSY"):
                        assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
                        assert error.retry_delay
                        refused += 1
                await asyncio.sleep(0.01)
            lab.heal()
            assert sum([await task for task in streams]) == 8 * 400
            print(
                f"{time.monotonic() - started:.1f} s, {most >> 20} MiB more at most, {refused} refused"
            )
            assert refused
            assert most < 12 * limit, f"{most >> 20} MiB"

    lab.start("--max-pending-bytes", str(limit), breakable=True)
    asyncio.run(main())


async def pour(store: AsyncLightningStore, rollout) -> int:
    from tests.contract.helpers import batch

    names = (rollout.rollout_id, rollout.attempt.attempt_id)

    async def messages():
        for _ in range(40):
            made = batch(*names, *["s"] * 10)
            for span in made.spans:
                span.attributes.add(key="text").value.string_value = "y" * 10_000
            yield made

    return (await store.ingest_spans(messages())).accepted_count


def test_health_does_not_waver_while_the_disk_is_full(lab: Lab, small_disk: Path) -> None:
    """With an empty log the store can be opened, and read, on a disk that has no byte left."""
    lab.db = small_disk / "store.db"
    ballast = small_disk / "ballast"
    lab.start()
    with grpc.insecure_channel(lab.address) as channel:
        stub = LightningStoreServiceStub(channel)
        assert enqueue(stub, "before")
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        for n in range(1000):
            if not enqueue(stub, f"r-{n}", 100_000):
                break
        reopened = lab.log().count("still unusable")
        until(
            "it tried to recover three times",
            lambda: not lab.healthy(channel) and lab.log().count("still unusable") > reopened + 2,
        )
        assert "usable again" not in lab.log()
        ballast.unlink()
        until("healthy again", lambda: lab.healthy(channel))
        assert enqueue(stub, "after", 100_000)
