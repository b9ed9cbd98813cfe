"""What users see of the server itself."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.enums import (
    AttemptStatus,
    Durability,
    RolloutStatus,
    WorkerStatus,
)
from lightningstore.client._values.view import View
from lightningstore.v1 import attempt_pb2, rollout_pb2, statistics_pb2, worker_pb2

DURABILITY = statistics_pb2.Durability.DESCRIPTOR


class Limits(NamedTuple):
    """The limits that a server holds its callers to."""

    #: Largest message in bytes, in and out.
    message_bytes: int
    #: Largest input of a rollout in bytes.
    input_bytes: int
    #: Largest span in bytes.
    span_bytes: int
    #: Most items of one call.
    batch_items: int
    #: Most items of one page.
    page_size: int
    #: Most rollouts in the queue; 0: no limit.
    queue_length: int
    #: Most concurrent streams of one connection.
    connection_streams: int
    #: Most bytes of writes that wait for the disk.
    pending_bytes: int
    #: Most open streams of the whole server.
    open_streams: int


class ServerInfo(View[statistics_pb2.GetServerInfoResponse]):
    """What a server is."""

    _shown = ("version", "store_id", "backend", "durability")

    @property
    def version(self) -> str:
        """Its version, "0.1.0" for instance."""
        return self.message.version

    @property
    def store_id(self) -> str:
        """Names the store, for as long as its data is kept."""
        return self.message.store_id

    @property
    def backend(self) -> str:
        """What it keeps its data in: "memory" or "sqlite"."""
        return self.message.backend

    @property
    def durability(self) -> Durability:
        """What an answered write survives."""
        return convert.from_number(Durability, DURABILITY, self.message.durability)

    @property
    def capabilities(self) -> list[str]:
        """What it can do beyond the calls of the contract."""
        return list(self.message.capabilities)

    @property
    def otlp_http_port(self) -> int | None:
        """Port of OTLP over HTTP at the server's address; None: not served."""
        return self.message.otlp_http_port or None

    @property
    def limits(self) -> Limits:
        """The limits that it holds callers to."""
        return Limits(*(getattr(self.message.limits, name) for name in Limits._fields))

    @property
    def start_time(self) -> datetime:
        """When it started."""
        return convert.from_timestamp(self.message.start_time)


class Statistics(View[statistics_pb2.GetStatisticsResponse]):
    """How much of everything there is. A status that nothing has is left out."""

    _shown = ("rollouts", "queue_depth", "span_count")

    @property
    def rollouts(self) -> dict[RolloutStatus, int]:
        """Rollouts by status."""
        words = rollout_pb2.RolloutStatus.DESCRIPTOR
        counts = self.message.rollouts
        return {convert.from_number(RolloutStatus, words, c.status): c.count for c in counts}

    @property
    def attempts(self) -> dict[AttemptStatus, int]:
        """Attempts by status."""
        words = attempt_pb2.AttemptStatus.DESCRIPTOR
        counts = self.message.attempts
        return {convert.from_number(AttemptStatus, words, c.status): c.count for c in counts}

    @property
    def workers(self) -> dict[WorkerStatus, int]:
        """Workers by status."""
        words = worker_pb2.WorkerStatus.DESCRIPTOR
        counts = self.message.workers
        return {convert.from_number(WorkerStatus, words, c.status): c.count for c in counts}

    @property
    def resources_count(self) -> int:
        """Number of resources ids."""
        return self.message.resources_count

    @property
    def queue_depth(self) -> int:
        """Rollouts in the queue, those that wait for their back-off included."""
        return self.message.queue_depth

    @property
    def last_completion_number(self) -> int:
        """The last completion number given out, 0 if none."""
        return self.message.last_completion_number

    @property
    def span_count(self) -> int:
        """Spans stored, evicted ones not counted."""
        return self.message.span_count

    @property
    def span_bytes(self) -> int:
        """Their serialised size in bytes."""
        return self.message.span_bytes

    @property
    def evicted_span_count(self) -> int:
        """Spans evicted since the store was opened."""
        return self.message.evicted_span_count

    @property
    def eviction_threshold_bytes(self) -> int:
        """Span bytes above which the oldest are evicted; 0: never."""
        return self.message.eviction_threshold_bytes

    @property
    def safe_threshold_bytes(self) -> int:
        """Span bytes at which eviction stops; 0: never."""
        return self.message.safe_threshold_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the data file and its log in bytes; 0 without a file."""
        return self.message.file_bytes

    @property
    def uptime(self) -> float:
        """Seconds since the server started."""
        return convert.from_duration(self.message.uptime)

    @property
    def waiter_count(self) -> int:
        """Calls that wait for rollouts to claim or to finish."""
        return self.message.waiter_count
