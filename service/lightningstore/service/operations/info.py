"""GetStatistics and GetServerInfo."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import TypeVar

from lightningstore.service.engine.clock import Turn
from lightningstore.service.engine.engine import Engine
from lightningstore.service.operations.pauses import Pauses
from lightningstore.service.rules.checks import check_labels
from lightningstore.service.rules.rows import RolloutQuery
from lightningstore.service.rules.times import NANOS, stamp
from lightningstore.v1.statistics_pb2 import (
    AttemptStatusCount,
    GetServerInfoRequest,
    GetServerInfoResponse,
    GetStatisticsRequest,
    GetStatisticsResponse,
    Limits,
    QueueDepth,
    RolloutStatusCount,
    WorkerStatusCount,
)

C = TypeVar("C")

#: Maximum number of task queues in an answer, and how many are compared before other tasks run.
SHOWN_QUEUES, DEPTHS_AT_ONCE = 100, 1000
CAPABILITIES = ("otlp-grpc", "long-poll", "watch", "request-ids", "namespaces")


@cache
def _version() -> str:
    """Return the server's version. Reading it takes a millisecond."""
    return version("lightningstore")


class Info:
    """The calls of statistics.proto."""

    def __init__(self, engine: Engine, pauses: Pauses) -> None:
        self._engine = engine
        self._pauses = pauses
        self._live = engine.live
        #: The port of --http-port, and that of OTLP over HTTP alone. 0: not served.
        self.http_port = 0
        self.otlp_http_port = 0
        #: Address of this server; empty unless it is one of several.
        self.owner = ""

    def announce(self, *, http_port: int = 0, otlp_http_port: int = 0, owner: str = "") -> None:
        """Set the ports of HTTP, and the address of the server as one of several, for GetServerInfo."""
        self.http_port, self.otlp_http_port, self.owner = http_port, otlp_http_port, owner

    async def get_statistics(self, request: GetStatisticsRequest) -> GetStatisticsResponse:
        """Return the counters."""
        matching = await self._matching(request)
        deepest = await self._deepest()
        file_bytes = await self._engine.storage.file_bytes()
        counters, shelf = self._live.state.counters, self._live.shelf
        limits = self._engine.limits
        reply = GetStatisticsResponse(
            resources_count=len(self._live.state.resources),
            queue_depth=self._live.queue_depth,
            last_completion_number=self._engine.waiters.published,
            finished_last_minute_count=self._engine.finishes.count(self._engine.clock.monotonic()),
            latest_publish_number=counters.resources_updates,
            span_count=counters.spans,
            span_bytes=counters.span_bytes,
            evicted_span_count=shelf.evicted_count,
            eviction_threshold_bytes=0 if self._engine.is_durable else limits.eviction_bytes,
            safe_threshold_bytes=0 if self._engine.is_durable else limits.safe_bytes,
            file_bytes=file_bytes,
            waiter_count=self._engine.waiters.count + len(self._engine.polls),
            queues=deepest,
            queue_count=len(self._live.state.depths),
            claim_pause=self._pauses.pause,
            running_attempt_count=self._live.running_attempt_count,
            rollouts=_totals(RolloutStatusCount, counters.rollouts),
            matching_rollouts=_totals(RolloutStatusCount, matching),
            attempts=_totals(AttemptStatusCount, counters.attempts),
            workers=_totals(WorkerStatusCount, self._live.workforce.counts),
        )
        reply.disk_free_bytes, reply.disk_bytes = await self._engine.storage.disk_bytes()
        up = self._engine.clock.monotonic() - self._engine.started_at
        reply.uptime.seconds, reply.uptime.nanos = int(up), int(up % 1 * NANOS)
        await self._engine.barrier()
        return reply

    async def _matching(self, request: GetStatisticsRequest) -> dict[int, int]:
        """Return the number of rollouts with the labels of the request, by status. Raises FieldInvalid."""
        check_labels("labels", request.labels)
        if not request.labels:
            return {}
        await self._engine.barrier()  # the back end has what the counters show
        query = RolloutQuery(labels=frozenset(request.labels.items()))
        return await self._engine.storage.count_rollouts(query)

    async def _deepest(self) -> list[QueueDepth]:
        """Return the longest task queues, the longest first; the number of queues is unlimited."""
        turn, deepest = Turn(), list[tuple[int, str]]()
        depths = [(-depth.count, depth.queue) for depth in self._live.state.depths.values()]
        for start in range(0, len(depths), DEPTHS_AT_ONCE):
            part = depths[start : start + DEPTHS_AT_ONCE]
            deepest = sorted([*deepest, *part])[:SHOWN_QUEUES]
            if turn.over():
                await turn.next()
        return [QueueDepth(queue=queue, depth=-count) for count, queue in deepest]

    async def get_server_info(self, _request: GetServerInfoRequest) -> GetServerInfoResponse:
        """Return the server's version, capabilities and limits."""
        limits = self._engine.limits
        return GetServerInfoResponse(
            version=_version(),
            store_id=self._engine.store_id,
            backend=self._engine.storage.name,
            durability=self._engine.storage.durability,
            capabilities=(*CAPABILITIES, *(("otlp-http",) if self.otlp_http_port else ())),
            limits=Limits(
                message_bytes=limits.message_bytes,
                input_bytes=limits.input_bytes,
                span_bytes=limits.span_bytes,
                batch_items=limits.batch_items,
                page_size=limits.page_size,
                queue_length=limits.queue_length,
                connection_streams=limits.connection_streams,
                pending_bytes=limits.pending_bytes,
                open_streams=limits.open_streams,
                resource_versions=limits.resource_versions,
            ),
            start_time=stamp(self._engine.started_ns),
            http_port=self.http_port,
            otlp_http_port=self.otlp_http_port,
            namespace=self._engine.namespace,
            owner=self.owner,
        )


def _totals(kind: Callable[..., C], counts: dict[int, int]) -> list[C]:
    """Return counts by status as messages, without zeros."""
    return [kind(status=status, count=count) for status, count in sorted(counts.items()) if count]
