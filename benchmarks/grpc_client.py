"""The load's client of our own servers: raw stubs with as little overhead as Python allows.

Requests are serialised in advance if possible, and responses stay bytes until they are needed, so
that the server is measured. Small calls use `wire`; streams and large messages use grpc.aio. This
is not the client library, which adds features for users.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import grpc
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, Attempt, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest, DequeueRolloutsResponse
from lightningstore.v1.completion_pb2 import (
    WaitForRolloutsRequest,
    WatchRolloutsRequest,
    WatchRolloutsResponse,
)
from lightningstore.v1.rollout_pb2 import (
    EnqueueRolloutsRequest,
    EnqueueRolloutsResponse,
    RolloutSpec,
)
from lightningstore.v1.service_pb2 import DESCRIPTOR
from lightningstore.v1.span_pb2 import (
    AddSpansRequest,
    IngestSpansRequest,
    IngestSpansResponse,
    QuerySpansRequest,
    QuerySpansResponse,
    SpanBatch,
)
from lightningstore.v1.statistics_pb2 import GetStatisticsResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from benchmarks import spans, wire
from benchmarks.loop import Exhausted

PATH = f"/{DESCRIPTOR.services_by_name['LightningStoreService'].full_name}/"
EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
INPUT = b'{"question": "What is the capital of France?", "seed": 1}'
#: Callers that share a connection.
CALLERS_A_CHANNEL = 16
OPTIONS = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]

Claim = tuple[str, str]


class Client:
    """One contender as a load sees it. The peer's has the same methods."""

    def __init__(self, address: str, callers: int) -> None:
        self._address = address
        self._count = max(1, -(-callers // CALLERS_A_CHANNEL))
        self._channels = [grpc.aio.insecure_channel(address, OPTIONS) for _ in range(self._count)]
        self._connections: list[wire.Connection] = []
        self._requests: dict[tuple[str, int], bytes] = {}

    def call(self, caller: int, method: str, request: bytes) -> asyncio.Future[bytes]:
        """Begin a unary call on the connection of a caller. Requests above 64 KB are refused."""
        return self._connections[caller % self._count].call((PATH + method).encode(), request)

    def channel(self, caller: int) -> grpc.aio.Channel:
        """Return the grpc.aio channel of a caller."""
        return self._channels[caller % self._count]

    async def open(self) -> None:
        """Connect."""
        self._connections = [await wire.connect(self._address) for _ in range(self._count)]
        for channel in self._channels:
            await channel.channel_ready()

    async def close(self) -> None:
        """Disconnect."""
        for connection in self._connections:
            connection.close()
        for channel in self._channels:
            await channel.close()

    # Calls

    async def enqueue(self, caller: int, count: int) -> Any:
        """Enqueue `count` rollouts; `ids` parses the answer."""
        request = self._requests.get(("enqueue", count))
        if request is None:
            made = EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=INPUT)] * count)
            request = self._requests["enqueue", count] = made.SerializeToString()
        return await self.call(caller, "EnqueueRollouts", request)

    def ids(self, answer: bytes) -> list[str]:
        """Return the rollout ids of an answer to `enqueue`."""
        return [r.rollout_id for r in EnqueueRolloutsResponse.FromString(answer).rollouts]

    async def claim(self, caller: int, count: int) -> Any:
        """Claim up to `count` rollouts; `claims` parses the answer. Raises Exhausted."""
        request = self._requests.get(("claim", count))
        if request is None:
            made = DequeueRolloutsRequest(limit=count)
            request = self._requests["claim", count] = made.SerializeToString()
        answer = await self.call(caller, "DequeueRollouts", request)
        if not answer:
            raise Exhausted
        return answer

    def claims(self, answer: bytes) -> list[Claim]:
        """Return rollout and attempt ids of an answer to `claim`."""
        rollouts = DequeueRolloutsResponse.FromString(answer).rollouts
        return [(r.rollout_id, r.latest_attempt.attempt_id) for r in rollouts]

    def outcome(self, claim: Claim) -> Any:
        """Return a request for `finish`."""
        attempt = Attempt(rollout_id=claim[0], attempt_id=claim[1], status=ATTEMPT_STATUS_SUCCEEDED)
        return UpdateAttemptRequest(attempt=attempt).SerializeToString()

    async def finish(self, caller: int, outcome: Any) -> None:
        """Report an attempt as succeeded."""
        await self.call(caller, "UpdateAttempt", outcome)

    async def wait(self, caller: int, rollout_id: str) -> Any:
        """Begin to wait for a rollout; returns an awaitable that ends when it has finished."""
        stream = self.channel(caller).unary_stream(PATH + "WaitForRollouts")(
            WaitForRolloutsRequest(rollout_ids=[rollout_id]).SerializeToString()
        )
        await stream.initial_metadata()  # sent once the waiter stands
        return _finished(stream)

    async def watch(self) -> Watch:
        """Open one stream of all that finishes; `Watch.finished` picks one rollout out of it."""
        info = await self.call(0, "GetStatistics", b"")
        last = GetStatisticsResponse.FromString(info).last_completion_number
        stream = self.channel(0).unary_stream(
            PATH + "WatchRollouts", response_deserializer=WatchRolloutsResponse.FromString
        )(WatchRolloutsRequest(after_completion_number=last).SerializeToString())
        return Watch(stream)

    # Spans

    def blocks(self, blocks: int, size: int) -> list[Any]:
        """Return blocks of spans, serialised as far as possible."""
        made = []
        for seed in range(blocks):
            batch = SpanBatch(
                resource=spans.resource(), scope=spans.SCOPE, spans=spans.block(size, seed)
            )
            made.append(batch.SerializeToString())
        return made

    def message(self, claim: Claim, block: bytes) -> bytes:
        """Return an IngestSpansRequest: a message is its fields, one after the other."""
        head = SpanBatch(rollout_id=claim[0], attempt_id=claim[1]).SerializeToString()
        size = len(head) + len(block)
        return b"".join((b"\x0a", _varint(size), head, block))

    async def ingest(self, caller: int, messages: Iterable[bytes]) -> int:
        """Send messages on one stream and return how many spans were accepted."""
        stream = self.stream(caller)
        for message in messages:
            await stream.write(message)
        await stream.done_writing()
        return IngestSpansResponse.FromString(await stream).result.accepted_count

    def stream(self, caller: int) -> Any:
        """Open a stream of span messages; `write` them, then `done_writing`, then await it."""
        return self.channel(caller).stream_unary(PATH + "IngestSpans")()

    async def add(self, caller: int, claim: Claim, block: bytes) -> None:
        """Store a small batch by a call of its own."""
        await self.call(caller, "AddSpans", self.message(claim, block))

    def export_blocks(self, blocks: int, size: int) -> list[bytes]:
        """Return the spans of `blocks` as OTLP's ScopeSpans."""
        return [
            ResourceSpans(
                scope_spans=[ScopeSpans(scope=spans.SCOPE, spans=spans.block(size, seed))]
            ).SerializeToString()
            for seed in range(blocks)
        ]

    async def export(self, caller: int, claim: Claim, block: bytes) -> None:
        """Send a block of `export_blocks` as an OpenTelemetry exporter would."""
        head = ResourceSpans(resource=spans.resource(*claim)).SerializeToString()
        request = b"".join((b"\x0a", _varint(len(head) + len(block)), head, block))
        await self.channel(caller).unary_unary(EXPORT)(request)

    async def query(self, caller: int, claim: Claim) -> int:
        """Read all spans of a rollout into messages; returns how many."""
        stream = self.channel(caller).unary_stream(
            PATH + "QuerySpans", response_deserializer=QuerySpansResponse.FromString
        )(QuerySpansRequest(rollout_id=claim[0]).SerializeToString())
        count = 0
        async for answer in stream:
            for batch in answer.batches:
                count += len(batch.spans)
        return count


class Watch:
    """Tells many callers of their rollouts from one stream."""

    def __init__(self, stream: Any) -> None:
        self._futures: dict[str, asyncio.Future[None]] = {}
        self._reader = asyncio.create_task(self._read(stream))

    async def _read(self, stream: Any) -> None:
        async for message in stream:
            for rollout in message.rollouts:
                self._future(rollout.rollout_id).set_result(None)

    def _future(self, rollout_id: str) -> asyncio.Future[None]:
        found = self._futures.get(rollout_id)
        if found is None:
            found = self._futures[rollout_id] = asyncio.get_running_loop().create_future()
        return found

    async def finished(self, rollout_id: str) -> None:
        """Return when the rollout has finished."""
        await self._future(rollout_id)
        del self._futures[rollout_id]

    def close(self) -> None:
        """Stop reading."""
        self._reader.cancel()


async def _finished(stream: Any) -> None:
    async for _ in stream:
        pass


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


assert ExportTraceServiceRequest.DESCRIPTOR.fields_by_name["resource_spans"].number == 1
assert IngestSpansRequest.DESCRIPTOR.fields_by_name["batch"].number == 1
assert AddSpansRequest.DESCRIPTOR.fields_by_name["batch"].number == 1
