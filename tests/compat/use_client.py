"""Use every part of the installed client against a server: both clients, runner, exporter, errors."""

from __future__ import annotations

import asyncio
import sys
from importlib.metadata import version

from lightningstore.client import (
    AsyncLightningStore,
    LightningStore,
    NotFoundError,
    Runner,
    SpanExporter,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def use_blocking(address: str) -> None:
    with LightningStore(address) as store:
        rollout = store.start_rollout({"n": 2**60 + 1}, worker_id="compat")
        assert rollout.input == {"n": 2**60 + 1}
        names = {
            "agentlightning.rollout_id": rollout.rollout_id,
            "agentlightning.attempt_id": rollout.latest_attempt.attempt_id,
        }
        provider = TracerProvider(resource=Resource.create(names))
        provider.add_span_processor(BatchSpanProcessor(SpanExporter(address)))
        with provider.get_tracer("compat").start_as_current_span("step"):
            pass
        provider.shutdown()
        assert [s.name for s in store.query_spans(rollout.rollout_id)] == ["step"]
        store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        assert [r.status.value for r in store.wait_for_rollouts([rollout.rollout_id])] == [
            "succeeded"
        ]
        try:
            store.get_rollout("nobody")
        except NotFoundError as error:
            assert error.reason == "ERROR_REASON_ROLLOUT_NOT_FOUND"
        else:
            raise AssertionError("no error for an unknown rollout")


def agent(task, resources, tracer, context):
    return float(task["x"])


async def use_asyncio(address: str) -> None:
    async with AsyncLightningStore(address) as store:
        runner = Runner(address, agent, worker_id="compat-runner")
        running = asyncio.create_task(runner.arun())
        rollout = await store.enqueue_rollout({"x": 3})
        finished = [r async for r in store.wait_for_rollouts([rollout.rollout_id], timeout=20)]
        assert [r.status.value for r in finished] == ["succeeded"]
        spans = [s async for s in store.query_spans(rollout.rollout_id)]
        assert spans[-1].attributes["agentlightning.reward.0.value"] == 3.0
        runner.stop()
        await running


if __name__ == "__main__":
    use_blocking(sys.argv[1])
    asyncio.run(use_asyncio(sys.argv[1]))
    names = ("grpcio", "protobuf", "opentelemetry-sdk", "opentelemetry-proto")
    print("  client works with", ", ".join(f"{name} {version(name)}" for name in names))
