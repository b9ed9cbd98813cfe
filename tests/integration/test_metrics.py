"""Metrics for Prometheus, and traces of the server's own calls."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from lightningstore.client import AsyncLightningStore, LightningStoreError
from lightningstore.service.rpc.dispatch import CallDetails
from lightningstore.service.server.config import Config
from lightningstore.service.server.metrics import Metrics
from lightningstore.service.server.server import Server, open_store
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest, RolloutSpec

from tests.contract.helpers import batch
from tests.integration.process import ENVIRONMENT, run, serve
from tests.integration.scrapes import scrape, scrape_with
from tests.integration.test_security import METHODS, STORE, Secured, bearer, code_of, keep_spans
from tests.namespaced import Caller

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("backend", ["memory", "sqlite"])
async def test_metrics_tell_what_happened(tmp_path: Path, backend: str) -> None:
    config = Config(backend=backend, db=tmp_path / "m.db", port=0, grace=0.1, metrics_port=0)
    server = Server(await open_store(config), config)
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
    expected = {
        'lightningstore_rollouts{namespace="default",status="queuing"}': 2,
        'lightningstore_rollouts{namespace="default",status="succeeded"}': 1,
        'lightningstore_attempts{namespace="default",status="succeeded"}': 1,
        'lightningstore_queue_depth{namespace="default"}': 2,
        'lightningstore_spans{namespace="default"}': 2,
        'lightningstore_claims_total{namespace="default"}': 1,
        'lightningstore_completions_total{namespace="default"}': 1,
        'lightningstore_ingested_batches_total{namespace="default"}': 1,
        'lightningstore_storage_usable{namespace="default"}': 1,
        'lightningstore_calls_total{code="OK",method="EnqueueRollouts"}': 1,
        'lightningstore_calls_total{code="OK",method="WaitForRollouts"}': 1,
        'lightningstore_calls_total{code="NOT_FOUND",method="GetRollout"}': 1,
        'lightningstore_call_seconds_count{method="DequeueRollouts"}': 1,
    }
    found = await scrape_with(server.metrics_port, expected)
    await server.stop(0.1)
    assert found['lightningstore_commits_total{namespace="default"}'] >= 4
    assert found['lightningstore_committed_bytes_total{namespace="default"}'] > 0


async def test_refusals_are_counted_by_code_and_made_up_names_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls without a token cannot add names to the metrics or the traces."""
    kept = keep_spans(monkeypatch)
    secured = Secured(tmp_path, metrics_port=0, trace_calls=True)
    made_up = [f"/lightningstore.v1.LightningStoreService/Nope{n}" for n in range(50)]
    made_up += ["/elsewhere/GetRollout", "/a/b/c", "/", "/x"]
    async with secured.served(), grpc.aio.insecure_channel(secured.server.address) as channel:
        calls: list[str] = []
        for path in made_up:
            assert await code_of(channel, path) == "UNAUTHENTICATED", path
        for path in METHODS:
            assert await code_of(channel, path, calls=calls) == "UNAUTHENTICATED", path
        runner = bearer(secured.secrets["runner"])
        assert await code_of(channel, METHODS[0], runner) == "PERMISSION_DENIED"
        assert secured.server.metrics is not None
        refused = 'lightningstore_calls_total{code="UNAUTHENTICATED",method="%s"}'
        denied = 'lightningstore_calls_total{code="PERMISSION_DENIED",method="EnqueueRollouts"}'
        counts = {
            refused % "other": len(made_up),
            denied: 1,
            **{refused % name: count for name, count in Counter(calls).items()},
        }
        found = await scrape_with(secured.server.metrics_port, counts)
    counted = {name: value for name, value in found.items() if "store_calls_total" in name}
    assert counted == counts
    reasons = 'lightningstore_refused_calls_total{reason="%s"}'
    assert found[reasons % "token_missing"] == len(made_up) + len(calls)
    assert found[reasons % "permission_denied"] == 1
    assert found["lightningstore_tokens_usable"] == 1
    assert {span.name for span in kept.get_finished_spans()} == set(METHODS)


async def test_defects_are_counted_as_what_grpc_makes_of_them() -> None:
    """Also in a call that nothing of ours is wrapped around."""

    async def stream(_request: Any, _context: Any) -> Any:
        raise ZeroDivisionError
        yield

    async def single(_request: Any, _context: Any) -> None:
        raise ZeroDivisionError

    handlers = {
        "GetRollout": grpc.unary_unary_rpc_method_handler(single),
        "QuerySpans": grpc.unary_stream_rpc_method_handler(stream),
        "WatchRollouts": grpc.unary_stream_rpc_method_handler(single),
    }
    metrics = Metrics()
    server = grpc.aio.server(interceptors=[metrics])
    service = grpc.method_handlers_generic_handler(STORE.full_name, handlers)
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        for name in handlers:
            assert await code_of(channel, f"/{STORE.full_name}/{name}") == "UNKNOWN"
    await server.stop(None)
    counted = {key: child._value.get() for key, child in metrics._calls._metrics.items()}
    assert counted == dict.fromkeys(((name, "UNKNOWN") for name in handlers), 1)


async def test_handlers_of_made_up_methods_are_not_kept() -> None:
    """A server with tokens has a handler for each of them, which rejects the call."""
    metrics, made = Metrics(), []

    async def handler_of(_: Any) -> Any:
        async def refuse(_request: Any, _context: Any) -> bytes:
            return b""

        made.append(weakref.ref(refuse))
        return grpc.unary_unary_rpc_method_handler(refuse)

    for path in (f"/{STORE.full_name}/Nope", "/a/b", METHODS[0], METHODS[0], METHODS[1]):
        await metrics.intercept_service(handler_of, CallDetails(path, ()))
    gc.collect()
    assert [refuse() is not None for refuse in made] == [False, False, False, True, True]


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
    collector = Server(await open_store(config), config)
    await collector.start()
    assert collector.metrics is not None
    monkeypatch.setitem(ENVIRONMENT, "OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{collector.address}")
    process = await serve("--backend", "memory", "--port", "0", "--trace-calls", folder=tmp_path)
    async with AsyncLightningStore(process.address, timeout=10) as store:
        await store.enqueue_rollout(1)
    assert await process.stop() == 0
    found = await scrape(collector.metrics_port)
    await collector.stop(0.1)
    assert found['lightningstore_calls_total{code="OK",method="Export"}'] >= 1


async def test_metrics_of_stores_have_their_namespace(tmp_path: Path) -> None:
    config = Config(backend="sqlite", db=tmp_path / "m.db", port=0, grace=0.1, metrics_port=0)
    server = Server(await open_store(config), config)
    await server.start()
    async with grpc.aio.insecure_channel(server.address) as channel:
        caller = Caller(channel)
        specs = [RolloutSpec(input_json=b"{}")] * 3
        await caller.create("a")
        await caller.create("b")
        await caller.call("EnqueueRollouts", EnqueueRolloutsRequest(rollouts=specs), "a")
        found = await scrape(server.metrics_port)
        depths = {name: value for name, value in found.items() if "queue_depth" in name}
        assert depths == {
            f'lightningstore_queue_depth{{namespace="{name}"}}': depth
            for name, depth in (("default", 0), ("a", 3), ("b", 0))
        }
        assert found['lightningstore_rollouts{namespace="a",status="queuing"}'] == 3
        assert found["lightningstore_namespaces"] == 3
        server.directory.close_if_unused(server.directory.find("b"))
        await caller.delete("a")
        found = await scrape(server.metrics_port)
        assert found["lightningstore_namespaces"] == 2
        assert not [name for name in found if 'namespace="a"' in name or 'namespace="b"' in name]
    await server.stop(0.1)
