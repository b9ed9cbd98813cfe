"""What idle namespaces cost a server: python -m benchmarks.namespaces.

Makes COUNT namespaces over files, each with a finished rollout. Then starts a server over the default namespace alone
and one over all, several times, and prints the time to the first answer, the resident memory, and what is open.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_directory
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2
from lightningstore.v1.namespace_pb2 import CreateNamespaceRequest, Namespace
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from lightningstore.v1.statistics_pb2 import GetStatisticsRequest

METADATA = (("x-lightning-namespace", "run-0"),)


class Cost(NamedTuple):
    """What a server that has just started costs."""

    seconds: float
    megabytes: float
    files: int
    threads: int


async def make(path: Path, count: int) -> None:
    """Make the namespaces."""
    directory = await open_directory(Config(db=path, durability="relaxed"))
    for number in range(count):
        request = CreateNamespaceRequest(namespace=Namespace(name=f"run-{number}"))
        space = await directory.create(request)
        async with directory.use(space) as store:
            spec = rollout_pb2.RolloutSpec(rollout_id="r", input_json=b"{}")
            await store.claims.start_rollout(claim_pb2.StartRolloutRequest(rollout=spec))
            ended = attempt_pb2.Attempt(
                rollout_id="r",
                attempt_id="latest",
                status=attempt_pb2.ATTEMPT_STATUS_SUCCEEDED,
            )
            await store.attempts.update_attempt(attempt_pb2.UpdateAttemptRequest(attempt=ended))
        directory.close_if_unused(space)
    await directory.close()


@contextmanager
def server(path: Path) -> Iterator[tuple[int, str, float]]:
    """Run a server; yields its process id, its address and when it was started."""
    program = Path(sys.executable).with_name("lightningstore")
    command = [str(program), "serve", "--port", "0"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [*command, "--db", str(path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield process.pid, line.split(" on ")[1].split(",")[0], began
    finally:
        process.terminate()
        process.wait()


def measure(path: Path) -> tuple[Cost, float]:
    """Start a server over a file; return what it costs, and the milliseconds of the first call in a namespace."""
    with server(path) as (process, address, began), grpc.insecure_channel(address) as channel:
        stub = LightningStoreServiceStub(channel)
        stub.GetStatistics(GetStatisticsRequest(), wait_for_ready=True)
        seconds = time.perf_counter() - began
        time.sleep(1)  # what is done once, after the start
        folder = Path(f"/proc/{process}")
        pages = int((folder / "statm").read_text().split()[1])
        cost = Cost(
            seconds,
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(list((folder / "fd").iterdir())),
            len(list((folder / "task").iterdir())),
        )
        first = 0.0
        if path.with_name(f"{path.name}.d").exists():
            start = time.perf_counter()
            stub.GetStatistics(GetStatisticsRequest(), metadata=METADATA)
            first = 1000 * (time.perf_counter() - start)
    return cost, first


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1000)
    parser.add_argument("--reps", type=int, default=5, help="repetitions (default: 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        alone, many = Path(folder, "alone.db"), Path(folder, "many.db")
        for path, count in ((alone, 0), (many, options.count)):
            asyncio.run(make(path, count))
        found = [(measure(alone), measure(many)) for _ in range(options.reps)]
        for name, index in (("default alone", 0), (f"with {options.count} more", 1)):
            costs = [pair[index][0] for pair in found]
            cost = Cost(*(statistics.median(values) for values in zip(*costs, strict=True)))
            print(
                f"{name:16} start {cost.seconds:5.2f} s, {cost.megabytes:6.1f} MB, "
                f"{cost.files} files, {cost.threads} threads"
            )
        first = statistics.median(pair[1][1] for pair in found)
        print(f"first call in a closed namespace: {first:.1f} ms")


if __name__ == "__main__":
    main()
