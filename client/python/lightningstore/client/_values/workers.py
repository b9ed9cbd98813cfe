"""What users see of workers."""

from __future__ import annotations

from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from lightningstore.client._values import convert
from lightningstore.client._values.attempts import Stop
from lightningstore.client._values.enums import WorkerStatus
from lightningstore.client._values.view import View
from lightningstore.v1 import worker_pb2

WORKER_STATUS = worker_pb2.WorkerStatus.DESCRIPTOR


class Worker(View[worker_pb2.Worker]):
    """A process that claims rollouts and works on them."""

    _shown = ("worker_id", "status", "current_rollout_id")

    @property
    def worker_id(self) -> str:
        """Its id, which it chose."""
        return self.message.worker_id

    @property
    def status(self) -> WorkerStatus:
        """What it does."""
        return convert.from_number(WorkerStatus, WORKER_STATUS, self.message.status)

    @cached_property
    def stats(self) -> dict[str, Any] | None:
        """What it last said about itself; None if it never did."""
        return convert.from_json(self.message.stats_json)  # type: ignore[no-any-return]

    @property
    def last_heartbeat_time(self) -> datetime | None:
        """When it last sent a heartbeat."""
        return self._time("last_heartbeat_time")

    @property
    def last_dequeue_time(self) -> datetime | None:
        """When it last asked for rollouts."""
        return self._time("last_dequeue_time")

    @property
    def last_busy_time(self) -> datetime | None:
        """When it last became busy."""
        return self._time("last_busy_time")

    @property
    def last_idle_time(self) -> datetime | None:
        """When it last became idle."""
        return self._time("last_idle_time")

    @property
    def current_rollout_id(self) -> str:
        """The rollout it works on, the newest of several; empty unless it is busy."""
        return self.message.current_rollout_id

    @property
    def current_attempt_id(self) -> str:
        """The attempt it works on, the newest of several; empty unless it is busy."""
        return self.message.current_attempt_id


class HeartbeatReply(NamedTuple):
    """What Heartbeat answers."""

    #: The worker after the heartbeat.
    worker: Worker
    #: The attempts that it should stop.
    stops: list[Stop]
