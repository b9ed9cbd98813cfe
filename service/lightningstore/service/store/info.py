"""GetStatistics and GetServerInfo."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from lightningstore.service.records import NANOS, stamp
from lightningstore.service.store.workers import WorkerOperations
from lightningstore.v1.statistics_pb2 import (
    DURABILITY_FULL,
    AttemptStatusCount,
    GetServerInfoRequest,
    GetServerInfoResponse,
    GetStatisticsRequest,
    GetStatisticsResponse,
    Limits,
    RolloutStatusCount,
    WorkerStatusCount,
)

CAPABILITIES = ("otlp-grpc", "long-poll", "watch", "request-ids")


class InfoOperations(WorkerOperations):
    """The calls of statistics.proto."""

    #: What `open_engine` knows and GetServerInfo tells.
    backend = "memory"
    durability: int = DURABILITY_FULL
    #: Port of OTLP over HTTP, which the server tells; 0: not served.
    otlp_http_port = 0

    async def get_statistics(self, _request: GetStatisticsRequest) -> GetStatisticsResponse:
        """Return the counters."""
        file_bytes = await self.storage.file_bytes()
        counters, shelf = self.state.counters, self.shelf
        reply = GetStatisticsResponse(
            resources_count=len(self.state.resources),
            queue_depth=self.queue_depth,
            last_completion_number=self.waiters.published,
            span_count=counters.spans,
            span_bytes=counters.span_bytes,
            evicted_span_count=shelf.evicted_count,
            eviction_threshold_bytes=self.limits.eviction_bytes,
            safe_threshold_bytes=self.limits.safe_bytes,
            file_bytes=file_bytes,
            waiter_count=self.waiters.count + len(self.polls),
        )
        totals: list[tuple[Any, dict[int, int], Any]] = [
            (RolloutStatusCount, counters.rollouts, reply.rollouts),
            (AttemptStatusCount, counters.attempts, reply.attempts),
            (WorkerStatusCount, self.workforce.counts, reply.workers),
        ]
        for kind, counts, into in totals:
            into.extend(kind(status=s, count=n) for s, n in sorted(counts.items()) if n)
        up = self.clock.monotonic() - self.opened_at
        reply.uptime.seconds, reply.uptime.nanos = int(up), int(up % 1 * NANOS)
        await self.barrier()
        return reply

    async def get_server_info(self, _request: GetServerInfoRequest) -> GetServerInfoResponse:
        """Return what this server is."""
        limits = self.limits
        return GetServerInfoResponse(
            version=version("lightningstore"),
            store_id=self.store_id,
            backend=self.backend,
            durability=self.durability,  # type: ignore[arg-type]
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
            ),
            start_time=stamp(self.opened_ns),
            otlp_http_port=self.otlp_http_port,
        )
