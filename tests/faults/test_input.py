"""Wild input: never a crash, an INTERNAL or a traceback, and a refused call changes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from lightningstore.service.rpc import calls as wrap
from lightningstore.service.rpc import handlers, otlp
from lightningstore.service.rules.errors import NamespaceNotFound
from lightningstore.service.rules.namespaces import check_namespace
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.v1 import claim_pb2, resources_pb2, rollout_pb2, service_pb2, statistics_pb2
from lightningstore.v1.service_pb2_grpc import LightningStoreServiceStub
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.calls import Calls
from tests.clock import ManualClock
from tests.faults.lab import Lab
from tests.faults.wild import Wild

SERVICE = service_pb2.DESCRIPTOR.services_by_name["LightningStoreService"]
METHODS = {method.name: method for method in SERVICE.methods}
#: gRPC's own, which stand open beside ours: Check and Watch even to those without a token.
HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
REFLECTION = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"]
STANDARD = [HEALTH["Check"], HEALTH["Watch"], *REFLECTION.methods]
REFUSALS = {
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "FAILED_PRECONDITION",
    "OUT_OF_RANGE",
    "RESOURCE_EXHAUSTED",
}
#: No request of less than 3 MB may hold the event loop up for longer.
LONGEST_SECONDS = 1.0
#: A store is thrown away before it is full of what was accepted.
INPUTS_A_STORE = 5000


class Refused(grpc.aio.AbortError):
    """What `abort` raises."""


class Context:
    """As much of a call as handlers use."""

    def __init__(self) -> None:
        self.code = self.text = ""
        self.gone = False

    async def abort(self, code: grpc.StatusCode, text: str, _trailers: Any = ()) -> None:
        self.code, self.text = code.name, text
        raise Refused

    async def send_initial_metadata(self, _metadata: Any) -> None:
        return

    def time_remaining(self) -> float:
        return 0.0

    def invocation_metadata(self) -> tuple[()]:
        return ()

    def cancelled(self) -> bool:
        return self.gone

    done = cancelled


def fingerprint(store: Any) -> tuple[Any, ...]:
    """Return what every change moves."""
    committer = store.engine.committer
    return committer.sealed, committer.changes.size, len(store.engine.live.workforce.touched)


async def furnished(backend: str, folder: Path) -> tuple[Any, list[str]]:
    """Return an open store with a few records, and their ids."""
    config = Config(backend=backend, db=folder / "wild.db", message_bytes=4 << 20)
    store = await open_store(config, ManualClock())
    try:
        return store, await furnish(Calls(store))
    except BaseException:
        await store.close()
        raise


async def furnish(store: Any) -> list[str]:
    known = ["latest"]
    config_ = {"max_attempts": 3, "retry_condition": [4, 5, 6], "timeout": {"seconds": 60}}
    resources = await store.add_resources(
        resources_pb2.AddResourcesRequest(
            resources={"p": {"prompt_template": {"template": "t", "engine": 1}}}
        )
    )
    known.append(resources.resources.resources_id)
    for n in range(6):
        spec = {
            "rollout_id": f"known-{n}",
            "input_json": b"1",
            "config": config_,
            "group_id": "g",
        }
        await store.enqueue_rollouts(rollout_pb2.EnqueueRolloutsRequest(rollouts=[spec]))
    claimed = await store.dequeue_rollouts(
        claim_pb2.DequeueRolloutsRequest(limit=3, worker_id="worker")
    )
    known += [f"known-{n}" for n in range(6)] * 3 + ["worker", "g"]
    return known + [r.latest_attempt_id for r in claimed.rollouts] * 3


async def consume(behaviour: Any, data: Any, context: Context) -> None:
    """Read a stream of answers until it waits for something."""

    async def read() -> None:
        async for _ in behaviour(data, context):
            pass

    task = asyncio.create_task(read())
    for _ in range(30):
        await asyncio.sleep(0)
        if task.done():
            break
    else:
        context.gone = True
        task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        assert context.gone


async def once(found: dict[str, Any], wild: Wild, name: str) -> str:
    """Send one wild request; returns what it was answered."""
    context = Context()
    handler = found[name]
    if name == "Export":
        data: Any = wild.bytes(ExportTraceServiceRequest.DESCRIPTOR)
    else:
        data = wild.bytes(METHODS[name.rpartition("/")[2]].input_type)
    try:
        if handler.request_streaming:
            more = [
                data,
                *(
                    wild.bytes(METHODS[name.rpartition("/")[2]].input_type)
                    for _ in range(wild.dice.randrange(3))
                ),
            ]
            await handler.stream_unary(stream(more), context)
        elif handler.response_streaming:
            await consume(handler.unary_stream, data, context)
        else:
            await handler.unary_unary(data, context)
    except Refused:
        pass
    assert "Traceback" not in context.text, context.text
    assert not context.code or context.code in REFUSALS, (name, context.code, context.text, data)
    return context.code


async def stream(messages: list[bytes]) -> Any:
    for message in messages:
        yield message


class Nowhere(otlp.Elsewhere):
    """There are no other namespaces."""

    def __init__(self) -> None:
        pass

    def check(self, name: str, metadata: Any) -> None:
        check_namespace("lightningstore.namespace", name)

    async def located(self, name: str) -> NoReturn:
        raise NamespaceNotFound(name)


class Job(NamedTuple):
    """Inputs for one store, which chance begun at `seed` makes up."""

    backend: str
    folder: Path
    seed: str
    inputs: int


class Found(NamedTuple):
    """What became of them: answers by code, and the one that took longest, in seconds."""

    codes: Counter[str]
    slowest: tuple[float, str]


def carry_out(job: Job) -> Found:
    """Send the inputs of a job to a new store in this process. Raises AssertionError."""
    return asyncio.run(_carry_out(job))


async def _carry_out(job: Job) -> Found:
    job.folder.mkdir()
    store, known = await furnished(job.backend, job.folder)
    try:
        return await _send(store, Wild(random.Random(job.seed), known), job.inputs)
    finally:
        await store.close()


async def _send(store: Any, wild: Wild, inputs: int) -> Found:
    limit = store.engine.limits.message_bytes
    calls = wrap.Calls(limit, wrap.Streams(1000), closing=lambda: False)
    handled = {**handlers.handlers(store, calls), "Export": otlp.handler(store, calls, Nowhere())}
    names, codes, slowest = list(handled), Counter[str](), (0.0, "")
    for _ in range(inputs):
        name = wild.dice.choice(names)
        # Of the processor: other programs that keep it busy are not the input's.
        before, began = fingerprint(store), time.process_time()
        code = await once(handled, wild, name)
        slowest = max(slowest, (time.process_time() - began, name))
        if code and not handled[name].request_streaming:  # a stream's first messages may be good
            assert fingerprint(store) == before, f"{name} was refused and changed something"
        codes[code or "accepted"] += 1
    return Found(codes, slowest)


@pytest.mark.parametrize(("backend", "share"), [("memory", 0.9), ("sqlite", 0.1)])
def test_wild_input_is_refused_by_name_and_changes_nothing(
    seed: int, tries, tmp_path: Path, backend: str, share: float
) -> None:
    """In as many processes as there are cores; what each job does comes from the seed alone."""
    count = round(tries("fuzzed inputs") * share)
    jobs = [
        Job(backend, tmp_path / str(n), f"{seed} {n}", min(INPUTS_A_STORE, count - start))
        for n, start in enumerate(range(0, count, INPUTS_A_STORE))
    ]
    codes, slowest = Counter[str](), (0.0, "")
    spawn = multiprocessing.get_context("spawn")  # a fork of a process that uses gRPC may hang
    with ProcessPoolExecutor(os.cpu_count(), mp_context=spawn) as pool:
        for found in pool.map(carry_out, jobs):
            codes += found.codes
            slowest = max(slowest, found.slowest)
    print(dict(codes), f"slowest: {slowest[0] * 1e3:.0f} ms, {slowest[1]}")
    assert codes.total() == count
    assert slowest[0] < LONGEST_SECONDS
    assert codes["accepted"] > count * 0.02, "most of them have to get past the first check"


def ask(channel: grpc.Channel, method: MethodDescriptor, data: bytes) -> bytes | None:
    """Send bytes to a method; returns the first answer, if there is one. Raises grpc.RpcError."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    if not method.server_streaming:
        # A claim may wait as long as its deadline.
        seconds = 0.5 if method.name == "DequeueRollouts" else 30
        return channel.unary_unary(path)(data, timeout=seconds)
    if method.client_streaming:
        answers = channel.stream_stream(path)(iter([data]), timeout=30)
    else:
        answers = channel.unary_stream(path)(data, timeout=30)
    first = next(answers, None)
    answers.cancel()
    return first


def test_wild_input_over_the_wire_harms_nobody_else(lab: Lab, dice: random.Random, tries) -> None:
    """The same through gRPC, with a neighbour who works on undisturbed."""
    lab.start()
    count = max(300, tries("fuzzed inputs") // 100)
    unary = [m for m in SERVICE.methods if not m.client_streaming and not m.server_streaming]
    wild = Wild(dice, ["latest", "known"])
    with grpc.insecure_channel(lab.address) as channel:
        neighbour = LightningStoreServiceStub(channel)

        def timed() -> float:
            began = time.perf_counter()
            neighbour.GetStatistics(statistics_pb2.GetStatisticsRequest(), timeout=30)
            return time.perf_counter() - began

        slowest = 0.0
        for _ in range(count):
            method = dice.choice(STANDARD if dice.random() < 0.25 else unary)
            sent = wild.bytes(method.input_type)
            try:
                data = ask(channel, method, sent)
                assert data is not None or method.client_streaming, method.name
                GetMessageClass(method.output_type).FromString(data or b"")
            except grpc.RpcError as error:
                code = error.code().name
                assert code in REFUSALS | {"DEADLINE_EXCEEDED"}, (
                    method.name,
                    code,
                    error.details(),
                )
                assert code != "DEADLINE_EXCEEDED" or method.name == "DequeueRollouts"
            took = timed()
            if took >= LONGEST_SECONDS:  # an input that holds others up does so again
                with contextlib.suppress(grpc.RpcError):
                    ask(channel, method, sent)
                took = timed()
            slowest = max(slowest, took)
        print(f"{count} inputs; the neighbour's slowest call took {slowest * 1e3:.0f} ms")
        assert slowest < LONGEST_SECONDS
    assert "Traceback" not in lab.log()
    assert lab.end() == 0
    assert lab.integrity() == "ok"
