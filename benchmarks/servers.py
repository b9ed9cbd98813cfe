"""Starts one server: `python -m benchmarks.servers echo|sink|keep|memory|sqlite [flags of serve]`.

memory and sqlite are `lightningstore serve` with its defaults. The others are grpc.aio services
with the same stubs, event loop, allocator, garbage collection and channel settings, without any
function: the echo builds replies of the same shape, the sink parses span messages, counts and drops
them, and keep is a sink that keeps their bytes, the limit for any store in memory. The last line
that each prints contains the address.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.service.cli.entry import main as run_cli
from lightningstore.service.server import tuning
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import grpc_options
from lightningstore.v1.attempt_pb2 import (
    ATTEMPT_STATUS_PREPARING,
    Attempt,
    UpdateAttemptRequest,
    UpdateAttemptResponse,
)
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, DequeueRolloutsResponse
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_STATUS_PREPARING,
    ROLLOUT_STATUS_QUEUING,
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
)
from lightningstore.v1.service_pb2_grpc import (
    LightningStoreServiceServicer,
    add_LightningStoreServiceServicer_to_server,
)
from lightningstore.v1.span_pb2 import IngestSpansRequest, IngestSpansResponse

SERVICE = "lightningstore.v1.LightningStoreService"
INPUT = b'{"question": "What is the capital of France?", "seed": 1}'


def _now() -> Timestamp:
    now = time.time_ns()
    return Timestamp(seconds=now // 10**9, nanos=now % 10**9)


class Echo(LightningStoreServiceServicer):
    """Answers with messages of the right shape, remembers nothing."""

    async def EnqueueRollouts(
        self, request: EnqueueRolloutsRequest, _: Any
    ) -> EnqueueRolloutsResponse:
        reply, now = EnqueueRolloutsResponse(), _now()
        for spec in request.rollouts:
            rollout = reply.rollouts.add(
                rollout_id=f"ro-{os.urandom(6).hex()}",
                input_json=spec.input_json,
                status=ROLLOUT_STATUS_QUEUING,
                start_time=now,
            )
            rollout.config.max_attempts = 1
        return reply

    async def DequeueRollouts(
        self, request: DequeueRolloutsRequest, _: Any
    ) -> DequeueRolloutsResponse:
        reply, now = DequeueRolloutsResponse(), _now()
        for _number in range(request.limit):
            rollout = reply.rollouts.add(
                rollout_id=f"ro-{os.urandom(6).hex()}",
                input_json=INPUT,
                status=ROLLOUT_STATUS_PREPARING,
                start_time=now,
                attempt_count=1,
                latest_attempt_id="at-00000000",
            )
            rollout.config.max_attempts = 1
            attempt = rollout.latest_attempt
            attempt.rollout_id, attempt.attempt_id = rollout.rollout_id, "at-00000000"
            attempt.sequence_number, attempt.status = 1, ATTEMPT_STATUS_PREPARING
            attempt.start_time.CopyFrom(now)
        return reply

    async def UpdateAttempt(self, request: UpdateAttemptRequest, _: Any) -> UpdateAttemptResponse:
        given, now = request.attempt, _now()
        attempt = Attempt(
            rollout_id=given.rollout_id,
            attempt_id=given.attempt_id,
            sequence_number=1,
            status=given.status,
            start_time=now,
            end_time=now,
        )
        return UpdateAttemptResponse(attempt=attempt)


class Sink(Echo):
    """Takes spans and drops them."""

    async def IngestSpans(
        self, request_iterator: AsyncIterator[IngestSpansRequest], _: Any
    ) -> IngestSpansResponse:
        reply = IngestSpansResponse()
        async for request in request_iterator:
            reply.result.accepted_count += len(request.batch.spans)
        return reply


class Keep(Sink):
    """Takes spans and keeps the messages as they came, in a list."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []

    async def ingest(self, requests: AsyncIterator[bytes], _: Any) -> bytes:
        reply = IngestSpansResponse()
        async for data in requests:
            reply.result.accepted_count += len(IngestSpansRequest.FromString(data).batch.spans)
            self.kept.append(data)
        return reply.SerializeToString()


async def _serve(service: Echo) -> None:
    server = grpc.aio.server(options=grpc_options(Config()))
    add_LightningStoreServiceServicer_to_server(service, server)
    if isinstance(service, Keep):  # its messages come as bytes
        raw = {"IngestSpans": grpc.stream_unary_rpc_method_handler(service.ingest)}
        server.add_registered_method_handlers(SERVICE, raw)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    tuning.settle_garbage()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"{type(service).__name__} on 127.0.0.1:{port}", flush=True)
    await stop.wait()
    await server.stop(0)


LIMITS: dict[str, type[Echo]] = {"echo": Echo, "sink": Sink, "keep": Keep}


def main() -> None:
    """Serve until SIGTERM."""
    kind = sys.argv[1]
    if kind in LIMITS:
        tuning.keep_freed_memory()
        tuning.run(_serve(LIMITS[kind]()))
        return
    sys.argv[1:] = ["serve", "--port", "0", "--backend", kind, *sys.argv[2:]]
    run_cli()


if __name__ == "__main__":
    main()
