"""Properties and statistics of a server."""

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
from lightningstore.v1 import attempt_pb2, claim_pb2, rollout_pb2, statistics_pb2, worker_pb2

DURABILITY = statistics_pb2.Durability.DESCRIPTOR


class Limits(NamedTuple):
    """The limits of a server.

    Attributes:
        message_bytes: Maximum size of a message in bytes, in both directions.
        input_bytes: Maximum size of the input of a rollout in bytes.
        span_bytes: Maximum size of a span in bytes.
        batch_items: Maximum number of items in one call.
        page_size: Maximum number of items in one page.
        queue_length: Maximum number of rollouts in the queue. 0: unlimited.
        connection_streams: Maximum number of concurrent streams on one connection.
        pending_bytes: Maximum bytes of writes that wait for the disk.
        open_streams: Maximum number of open streams of the server.
        resource_versions: Number of versions that are kept of each resources id. 0: all.
    """

    message_bytes: int
    input_bytes: int
    span_bytes: int
    batch_items: int
    page_size: int
    queue_length: int
    connection_streams: int
    pending_bytes: int
    open_streams: int
    resource_versions: int


class ClaimPause(NamedTuple):
    """A pause of all claims.

    Attributes:
        start_time: When it began, in UTC.
        reason: Reason for the pause, for people. May be empty.
    """

    start_time: datetime
    reason: str

    @classmethod
    def from_message(cls, message: claim_pb2.ClaimPause) -> ClaimPause:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The pause.
        """
        return cls(convert.from_timestamp(message.start_time), message.reason)


class PauseResult(NamedTuple):
    """The result of pausing or resuming claims.

    Attributes:
        pause: The pause that holds, or that the call ended. None: claims were not paused.
        running_attempt_count: Number of attempts that are preparing or running.
    """

    pause: ClaimPause | None
    running_attempt_count: int

    @classmethod
    def of_pause(cls, message: claim_pb2.PauseClaimsResponse) -> PauseResult:
        """Convert the response of PauseClaims.

        Args:
            message: The message.

        Returns:
            The result.
        """
        pause = ClaimPause.from_message(message.pause) if message.HasField("pause") else None
        return cls(pause, message.running_attempt_count)

    @classmethod
    def of_resume(cls, message: claim_pb2.ResumeClaimsResponse) -> PauseResult:
        """Convert the response of ResumeClaims.

        Args:
            message: The message.

        Returns:
            The result.
        """
        ended = message.HasField("ended_pause")
        pause = ClaimPause.from_message(message.ended_pause) if ended else None
        return cls(pause, message.running_attempt_count)


class ServerInfo(View[statistics_pb2.GetServerInfoResponse]):
    """Properties of a server. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("version", "store_id", "backend", "durability")

    @property
    def version(self) -> str:
        """Version of the server, such as "0.1.0"."""
        return self.message.version

    @property
    def store_id(self) -> str:
        """Id of the store, which is kept as long as its data."""
        return self.message.store_id

    @property
    def backend(self) -> str:
        """Back end: "memory", "sqlite" or "postgresql"."""
        return self.message.backend

    @property
    def namespace(self) -> str:
        """Namespace that answered; empty from servers of versions without namespaces."""
        return self.message.namespace

    @property
    def owner(self) -> str:
        """Address (host:port) of the server that serves the namespace; empty if there is only one server."""
        return self.message.owner

    @property
    def durability(self) -> Durability:
        """What an answered write survives."""
        return convert.from_number(Durability, DURABILITY, self.message.durability)

    @property
    def capabilities(self) -> list[str]:
        """Optional features of the server."""
        return list(self.message.capabilities)

    @property
    def otlp_http_port(self) -> int | None:
        """Port of OTLP over HTTP, at the address of the server. None: not served."""
        return self.message.otlp_http_port or None

    @property
    def http_port(self) -> int | None:
        """Port of HTTP, with the console, at the address of the server. None: not served, or unknown to the server."""
        return self.message.http_port or None

    @property
    def limits(self) -> Limits:
        """Limits of the server."""
        return Limits(*(getattr(self.message.limits, name) for name in Limits._fields))

    @property
    def start_time(self) -> datetime:
        """Time at which the server started, in UTC."""
        return convert.from_timestamp(self.message.start_time)


class Statistics(View[statistics_pb2.GetStatisticsResponse]):
    """Numbers of records, and their sizes. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("rollouts", "queue_depth", "span_count")

    @property
    def rollouts(self) -> dict[RolloutStatus, int]:
        """Number of rollouts by status. Statuses without rollouts are left out."""
        words = rollout_pb2.RolloutStatus.DESCRIPTOR
        counts = self.message.rollouts
        return {convert.from_number(RolloutStatus, words, c.status): c.count for c in counts}

    @property
    def attempts(self) -> dict[AttemptStatus, int]:
        """Number of attempts by status. Statuses without attempts are left out."""
        words = attempt_pb2.AttemptStatus.DESCRIPTOR
        counts = self.message.attempts
        return {convert.from_number(AttemptStatus, words, c.status): c.count for c in counts}

    @property
    def workers(self) -> dict[WorkerStatus, int]:
        """Number of workers by status. Statuses without workers are left out."""
        words = worker_pb2.WorkerStatus.DESCRIPTOR
        counts = self.message.workers
        return {convert.from_number(WorkerStatus, words, c.status): c.count for c in counts}

    @property
    def resources_count(self) -> int:
        """Number of ids of resources."""
        return self.message.resources_count

    @property
    def queue_depth(self) -> int:
        """Number of rollouts in the queue, including those that wait for their back-off."""
        return self.message.queue_depth

    @property
    def queues(self) -> dict[str, int]:
        """Number of rollouts by task queue: the 100 longest queues, the longest first. "" is the default queue."""
        return {entry.queue: entry.depth for entry in self.message.queues}

    @property
    def queue_count(self) -> int:
        """Number of task queues that hold rollouts."""
        return self.message.queue_count

    @property
    def matching_rollouts(self) -> dict[RolloutStatus, int]:
        """Number of rollouts with the labels of the call, by status. Empty if it named none."""
        words = rollout_pb2.RolloutStatus.DESCRIPTOR
        counts = self.message.matching_rollouts
        return {convert.from_number(RolloutStatus, words, c.status): c.count for c in counts}

    @property
    def claim_pause(self) -> ClaimPause | None:
        """The pause of claims. None: claims are not paused."""
        if not self.message.HasField("claim_pause"):
            return None
        return ClaimPause.from_message(self.message.claim_pause)

    @property
    def running_attempt_count(self) -> int:
        """Number of attempts that are preparing or running."""
        return self.message.running_attempt_count

    @property
    def last_completion_number(self) -> int:
        """Last completion number. 0: no rollout has finished yet."""
        return self.message.last_completion_number

    @property
    def finished_last_minute_count(self) -> int:
        """Finishes of rollouts in the last 60 seconds, as far back as the server has the namespace open."""
        return self.message.finished_last_minute_count

    @property
    def latest_publish_number(self) -> int:
        """Publish number of the latest resources. 0: there are none."""
        return self.message.latest_publish_number

    @property
    def span_count(self) -> int:
        """Number of stored spans, without evicted ones."""
        return self.message.span_count

    @property
    def span_bytes(self) -> int:
        """Serialised size of the stored spans in bytes."""
        return self.message.span_bytes

    @property
    def evicted_span_count(self) -> int:
        """Number of spans evicted since the store was opened."""
        return self.message.evicted_span_count

    @property
    def eviction_threshold_bytes(self) -> int:
        """Size of the stored spans in bytes above which the oldest are evicted. 0: never."""
        return self.message.eviction_threshold_bytes

    @property
    def safe_threshold_bytes(self) -> int:
        """Size of the stored spans in bytes at which eviction stops. 0: never."""
        return self.message.safe_threshold_bytes

    @property
    def file_bytes(self) -> int:
        """Size of the data file and its log in bytes. 0 without a file."""
        return self.message.file_bytes

    @property
    def disk_free_bytes(self) -> int:
        """Free bytes of the file system that holds the data file. 0 if `disk_bytes` is 0."""
        return self.message.disk_free_bytes

    @property
    def disk_bytes(self) -> int:
        """Size of that file system in bytes. 0 without a file, and from servers that do not report it."""
        return self.message.disk_bytes

    @property
    def uptime(self) -> float:
        """Seconds since the server started."""
        return convert.from_duration(self.message.uptime)

    @property
    def waiter_count(self) -> int:
        """Number of calls that wait for rollouts to claim or to finish."""
        return self.message.waiter_count
