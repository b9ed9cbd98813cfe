# Generated from _async/workers.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Workers, in the blocking client: heartbeat, get, list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lightningstore.client._calls import control as calls
from lightningstore.client._sync.caller import Caller
from lightningstore.client._values.convert import JSONObject
from lightningstore.client.values import (
    Attempt,
    HeartbeatReply,
    Page,
    Rollout,
    Worker,
    WorkerStatus,
)


class WorkerCalls(Caller):
    """The calls on workers."""

    def heartbeat(
        self,
        worker_id: str,
        *,
        stats: JSONObject | None = None,
        attempts: Iterable[Attempt | Rollout | Sequence[str]] = (),
        publish_number: int | None = None,
    ) -> HeartbeatReply:
        """Report that a worker is alive, and which attempts it works on.

        An unknown worker is created. An unknown attempt is not an error: the reply says to stop it.

        Args:
            worker_id: Id of the worker, at most 256 characters.
            stats: A JSON object about the worker, such as its load. None leaves the stored one unchanged.
            attempts: The attempts that the worker works on: attempts, claimed rollouts, or pairs of rollout id and
                attempt id. At most 10,000 by default.
            publish_number: Publish number of the resources that the worker has loaded. None leaves the stored one
                unchanged.

        Returns:
            The worker, and the attempts that it should stop.

        Raises:
            InvalidArgumentError: An id, the stats or the publish number are invalid.
            ResourceExhaustedError: There are more attempts than one call may name.
            TypeError: A part of the stats has no JSON.
            ValueError: A number in the stats has no JSON.

        Example:
            rollout = store.start_rollout({"question": 1}, worker_id="w-1")
            reply = store.heartbeat("w-1", stats={"load": 0.5}, attempts=[rollout])
            for stop in reply.stops:
                print("stop", stop.attempt_id, stop.reason.value)
        """
        return self._send(calls.heartbeat(worker_id, stats, attempts, publish_number))

    def get_worker(self, worker_id: str) -> Worker:
        """Get one worker.

        Args:
            worker_id: Id of the worker.

        Returns:
            The worker.

        Raises:
            NotFoundError: The worker does not exist.
        """
        return self._send(calls.get_worker(worker_id))

    def list_workers(
        self,
        *,
        statuses: Iterable[WorkerStatus | str | int] = (),
        worker_id_contains: str = "",
        min_publish_number: int = 0,
        filter_logic: str | int = "and",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Worker]:
        """List one page of workers.

        Args:
            statuses: Only workers with one of these statuses. Empty filters are ignored.
            worker_id_contains: Only workers whose id contains this text.
            min_publish_number: Only workers that have loaded resources with this publish number or a higher one.
            filter_logic: How the filters are combined: "and" or "or".
            order_by: A field and a direction, such as "last_heartbeat_time desc". Empty: by id.
            page_size: Maximum workers in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same filters and order.

        Returns:
            One page of workers.

        Raises:
            InvalidArgumentError: A filter, the order or the page token is invalid.
            ValueError: A status is unknown.

        Example:
            weights = store.add_resources({"weights": [0.1]})
            store.heartbeat("w-1", publish_number=weights.publish_number)
            ready = store.list_workers(min_publish_number=weights.publish_number)
            assert [worker.worker_id for worker in ready] == ["w-1"]
        """
        return self._send(
            calls.list_workers(
                statuses=statuses,
                worker_id_contains=worker_id_contains,
                min_publish_number=min_publish_number,
                filter_logic=filter_logic,
                order_by=order_by,
                page_size=page_size,
                page_token=page_token,
            )
        )
