"""The load's client of the peer: PyPI's agentlightning 0.3.0 and its own HTTP client.

Runs in the peer's environment, with the methods of `grpc_client.Client`. If the peer has several
ways, this uses each: single spans with its client, and batches with OTLP over HTTP, which is its
fastest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from agentlightning.store.client_server import LightningStoreClient
from agentlightning.types import EnqueueRolloutRequest, Span
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans

from benchmarks import spans
from benchmarks.loop import Exhausted

INPUT = {"question": "What is the capital of France?", "seed": 1}
OTLP = {"Content-Type": "application/x-protobuf"}

Claim = tuple[str, str]


class Client:
    """The peer's store over HTTP."""

    def __init__(self, address: str, _callers: int) -> None:
        self._address = f"http://{address}"
        self._store = LightningStoreClient(self._address, request_timeout=120.0)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Connect."""
        self._session = aiohttp.ClientSession()
        await self._store.statistics()

    async def close(self) -> None:
        """Disconnect."""
        await self._store.close()
        if self._session is not None:
            await self._session.close()

    # Calls

    async def enqueue(self, _caller: int, count: int) -> Any:
        """Enqueue `count` rollouts."""
        if count == 1:
            return [await self._store.enqueue_rollout(input=INPUT)]
        return await self._store.enqueue_many_rollouts([EnqueueRolloutRequest(input=INPUT)] * count)

    def ids(self, answer: Any) -> list[str]:
        """Return the rollout ids of an answer to `enqueue`."""
        return [rollout.rollout_id for rollout in answer]

    async def claim(self, _caller: int, count: int) -> Any:
        """Claim up to `count` rollouts. Raises Exhausted."""
        found = await self._store.dequeue_many_rollouts(limit=count)
        if not found:
            raise Exhausted
        return found

    def claims(self, answer: Any) -> list[Claim]:
        """Return rollout and attempt ids of an answer to `claim`."""
        return [(rollout.rollout_id, rollout.attempt.attempt_id) for rollout in answer]

    def outcome(self, claim: Claim) -> Claim:
        """Return a request for `finish`."""
        return claim

    async def finish(self, _caller: int, outcome: Claim) -> None:
        """Report an attempt as succeeded."""
        await self._store.update_attempt(*outcome, status="succeeded")

    async def wait(self, _caller: int, rollout_id: str) -> Any:
        """Begin to wait for a rollout: its client polls, a tenth of a second at most each time."""
        return asyncio.ensure_future(self._finished(rollout_id))

    async def _finished(self, rollout_id: str) -> None:
        while not await self._store.wait_for_rollouts(rollout_ids=[rollout_id], timeout=0.1):
            pass

    # Spans

    def blocks(self, blocks: int, size: int) -> list[Any]:
        """Return blocks of spans, as keyword arguments of its Span."""
        return [[_keywords(made) for made in spans.block(size, seed)] for seed in range(blocks)]

    async def add(self, _caller: int, claim: Claim, block: Any) -> None:
        """Store a small batch; its client sends the spans one by one."""
        made = [
            Span(rollout_id=claim[0], attempt_id=claim[1], sequence_id=number, **keywords)
            for number, keywords in enumerate(block, 1)
        ]
        await self._store.add_many_spans(made)

    def export_blocks(self, blocks: int, size: int) -> list[bytes]:
        """Return the spans of `blocks` as OTLP's ScopeSpans."""
        return [
            ResourceSpans(
                scope_spans=[ScopeSpans(scope=spans.SCOPE, spans=spans.block(size, seed))]
            ).SerializeToString()
            for seed in range(blocks)
        ]

    async def export(self, _caller: int, claim: Claim, block: bytes) -> None:
        """Send a block by OTLP over HTTP."""
        assert self._session is not None
        head = ResourceSpans(resource=spans.resource(*claim)).SerializeToString()
        size, prefix = len(head) + len(block), bytearray(b"\x0a")
        while size > 0x7F:
            prefix.append(size & 0x7F | 0x80)
            size >>= 7
        prefix.append(size)
        body = b"".join((prefix, head, block))
        async with self._session.post(
            f"{self._address}/v1/traces", data=body, headers=OTLP
        ) as answer:
            answer.raise_for_status()
            await answer.read()

    async def query(self, _caller: int, claim: Claim) -> int:
        """Read all spans of a rollout into its objects; returns how many."""
        return len((await self._store.query_spans(claim[0])).items)


def _keywords(made: Any) -> dict[str, Any]:
    """Return what its Span is made from."""
    attributes = {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in made.attributes}
    event = made.events[0]
    return {
        "trace_id": made.trace_id.hex(),
        "span_id": made.span_id.hex(),
        "parent_id": made.parent_span_id.hex(),
        "name": made.name,
        "status": {"status_code": "OK"},
        "attributes": attributes,
        "events": [
            {
                "name": event.name,
                "attributes": {"finish_reason": "stop"},
                "timestamp": event.time_unix_nano / 1e9,
            }
        ],
        "links": [],
        "start_time": made.start_time_unix_nano / 1e9,
        "end_time": made.end_time_unix_nano / 1e9,
        "context": None,
        "parent": None,
        "resource": {"attributes": {"service.name": "agent"}, "schema_url": ""},
    }
