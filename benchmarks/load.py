"""One load generator, a process: `python -m benchmarks.load '{"workload": ..., "address": ...}'`.

With "peer": true it drives the peer, in the peer's environment.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import sys
from typing import Any

from benchmarks import workloads
from benchmarks.loop import Stage


async def main(job: dict[str, Any]) -> None:
    """Run one workload."""
    module = "benchmarks.peer_client" if job.get("peer") else "benchmarks.grpc_client"
    client = importlib.import_module(module).Client(job["address"], job["callers"])
    await client.open()
    gc.collect()
    gc.freeze()
    try:
        if job["workload"] == "history":
            await importlib.import_module("benchmarks.history_load").run(client, job, Stage())
        else:
            await workloads.WORKLOADS[job["workload"]](client, job, Stage())
    finally:
        await client.close()


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    if given.get("peer"):
        asyncio.run(main(given))
    else:
        import uvloop

        uvloop.run(main(given))
