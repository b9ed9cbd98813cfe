"""Metrics for Prometheus, and traces of the server's own calls."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from urllib.request import urlopen

import pytest
from lightningstore.client import AsyncLightningStore, LightningStoreError
from lightningstore.service.config import Config
from lightningstore.service.server import Server, open_engine

from tests.contract.helpers import batch
from tests.integration.process import ENVIRONMENT, run, serve

pytestmark = pytest.mark.asyncio


async def scrape(port: int) -> dict[str, float]:
    """Return the values of all samples by name and labels."""

    def read() -> str:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            return str(answer.read().decode())

    text = await asyncio.to_thread(read)
    found = re.findall(r"^(\w+(?:\{.*?\})?) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
async def test_metrics_tell_what_happened(tmp_path: Path, backend: str) -> None:
    config = Config(backend=backend, db=tmp_path / "m.db", port=0, grace=0.1, metrics_port=0)
    server = Server(await open_engine(config), config)
    await server.start()
    assert server.metrics is not None
    async with AsyncLightningStore(server.address, timeout=10) as store:
        await store.enqueue_rollouts([{"input": n} for n in range(3)])
        (rollout,) = await store.dequeue_rollouts(1)
        await store.add_spans(batch(rollout.rollout_id, rollout.attempt.attempt_id, "a", "b"))
        await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        waiting = store.wait_for_rollouts([rollout.rollout_id])
        assert len([r async for r in waiting]) == 1
        with pytest.raises(LightningStoreError):
            await store.get_rollout("nobody")
        found = await scrape(server.metrics.port)
    await server.stop(0.1)
    expected = {
        'lightningstore_rollouts{status="queuing"}': 2,
        'lightningstore_rollouts{status="succeeded"}': 1,
        'lightningstore_attempts{status="succeeded"}': 1,
        "lightningstore_queue_depth": 2,
        "lightningstore_spans": 2,
        "lightningstore_claims_total": 1,
        "lightningstore_completions_total": 1,
        "lightningstore_ingested_batches_total": 1,
        "lightningstore_storage_usable": 1,
        'lightningstore_calls_total{code="OK",method="EnqueueRollouts"}': 1,
        'lightningstore_calls_total{code="OK",method="WaitForRollouts"}': 1,
        'lightningstore_calls_total{code="NOT_FOUND",method="GetRollout"}': 1,
        'lightningstore_call_seconds_count{method="DequeueRollouts"}': 1,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["lightningstore_commits_total"] >= 4
    assert found["lightningstore_committed_bytes_total"] > 0


async def test_metrics_are_off_unless_asked_for_and_refuse_a_taken_port(tmp_path: Path) -> None:
    process = await serve("--backend", "memory", "--port", "0", folder=tmp_path)
    port = process.address.rpartition(":")[2]
    code, _, errors = await run(
        "serve", "--backend", "memory", "--port", "0", "--metrics-port", port, folder=tmp_path
    )
    assert code == 1
    assert f"cannot listen for metrics on 127.0.0.1:{port}" in errors
    assert await process.stop() == 0


async def test_server_traces_its_calls_into_another_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second server takes the traces: it refuses them for want of an attempt, and so shows they came."""
    config = Config(backend="memory", port=0, grace=0.1, metrics_port=0)
    collector = Server(await open_engine(config), config)
    await collector.start()
    assert collector.metrics is not None
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    process = await serve("--backend", "memory", "--port", "0", "--trace-calls", folder=tmp_path)
    async with AsyncLightningStore(process.address, timeout=10) as store:
        await store.enqueue_rollout(1)
    assert await process.stop() == 0
    found = await scrape(collector.metrics.port)
    await collector.stop(0.1)
    assert found['lightningstore_calls_total{code="OK",method="Export"}'] >= 1
