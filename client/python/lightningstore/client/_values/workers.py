"""Workers."""

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
    """A process that claims rollouts and works on them. A view of `message`, which is not copied.

    Args:
        message: The message of the contract.
    """

    _shown = ("worker_id", "status", "current_rollout_id")

    @property
    def worker_id(self) -> str:
        """Id of the worker, chosen by itself."""
        return self.message.worker_id

    @property
    def status(self) -> WorkerStatus:
        """Status of the worker."""
        return convert.from_number(WorkerStatus, WORKER_STATUS, self.message.status)

    @cached_property
    def stats(self) -> dict[str, Any] | None:
        """The last JSON object that the worker sent about itself. None if it sent none."""
        return convert.from_json(self.message.stats_json)  # type: ignore[no-any-return]

    @property
    def last_heartbeat_time(self) -> datetime | None:
        """Time of its last heartbeat, in UTC. None before the first."""
        return self._time("last_heartbeat_time")

    @property
    def last_dequeue_time(self) -> datetime | None:
        """Time of its last request for rollouts, in UTC. None before the first."""
        return self._time("last_dequeue_time")

    @property
    def last_busy_time(self) -> datetime | None:
        """Time at which it last became busy, in UTC. None: never."""
        return self._time("last_busy_time")

    @property
    def last_idle_time(self) -> datetime | None:
        """Time at which it last became idle, in UTC. None: never."""
        return self._time("last_idle_time")

    @property
    def current_rollout_id(self) -> str:
        """Id of the rollout that it works on; of several, the newest. Empty unless it is busy."""
        return self.message.current_rollout_id

    @property
    def current_attempt_id(self) -> str:
        """Id of the attempt that it works on; of several, the newest. Empty unless it is busy."""
        return self.message.current_attempt_id

    @property
    def publish_number(self) -> int:
        """Publish number of the resources that it has loaded, as it last reported. 0: it never reported one."""
        return self.message.publish_number


class HeartbeatReply(NamedTuple):
    """The result of `heartbeat`.

    Attributes:
        worker: The worker after the heartbeat.
        stops: The attempts that the worker should stop, each with the reason.
    """

    worker: Worker
    stops: list[Stop]
