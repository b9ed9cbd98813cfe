"""Rollouts, claims, attempts and workers of the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from lightningstore.client._calls import control as calls
from lightningstore.client._calls.call import Call
from lightningstore.client._values.convert import JSONObject
from lightningstore.client.values import (
    UNSET,
    Attempt,
    AttemptStatus,
    AttemptUpdate,
    Failure,
    HeartbeatReply,
    Page,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutSpec,
    RolloutStatus,
    Unset,
    Worker,
    WorkerStatus,
)

T = TypeVar("T")


class AsyncControlCalls:
    """The calls of the control plane. Statuses and modes are taken as enums or as their words."""

    async def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    async def enqueue_rollouts(
        self,
        specs: Iterable[RolloutSpec | Mapping[str, Any]],
        *,
        request_id: str | None = None,
    ) -> list[Rollout]:
        """Put rollouts at the tail of the queue: all of them or, on any error, none.

        A spec may also be a mapping of its fields by name. The client gives an id to each that has none,
        so that a retry makes no second one. A list above the server's limit (10,000 by default) is not
        split, since the parts would not be atomic: ResourceExhaustedError.

        Repeating a rollout id with the same content returns the stored rollout. Raises
        AlreadyExistsError for other content, NotFoundError for unknown resources, InvalidArgumentError,
        and TypeError or ValueError for an input that is no JSON.
        """
        return await self._send(calls.enqueue_rollouts(specs, request_id))

    async def enqueue_rollout(
        self,
        input: Any,  # noqa: A002
        *,
        mode: RolloutMode | str | int | None = None,
        priority: int = 0,
        group_id: str = "",
        resources_id: str = "",
        config: RolloutConfig | None = None,
        metadata: JSONObject | None = None,
        rollout_id: str = "",
        request_id: str | None = None,
    ) -> Rollout:
        """Put one rollout at the tail of the queue. The fields are those of RolloutSpec.

        Raises what `enqueue_rollouts` raises.
        """
        spec = RolloutSpec(
            input, mode, priority, group_id, resources_id, config, metadata, rollout_id
        )
        return (await self.enqueue_rollouts([spec], request_id=request_id))[0]

    async def start_rollout(
        self,
        input: Any,  # noqa: A002
        *,
        mode: RolloutMode | str | int | None = None,
        priority: int = 0,
        group_id: str = "",
        resources_id: str = "",
        config: RolloutConfig | None = None,
        metadata: JSONObject | None = None,
        rollout_id: str = "",
        worker_id: str = "",
        request_id: str | None = None,
    ) -> Rollout:
        """Make a rollout and claim it at once: its `attempt` is the claim. It never enters the queue.

        Raises AlreadyExistsError if the rollout id is taken, and what `enqueue_rollouts` raises.
        """
        spec = RolloutSpec(
            input, mode, priority, group_id, resources_id, config, metadata, rollout_id
        )
        return await self._send(calls.start_rollout(spec, worker_id, request_id))

    async def dequeue_rollouts(
        self,
        limit: int = 1,
        *,
        modes: Iterable[RolloutMode | str | int | None] = (),
        worker_id: str = "",
        wait: float = 0.0,
        request_id: str | None = None,
    ) -> list[Rollout]:
        """Claim up to `limit` rollouts from the queue; the claim is the `attempt` of each.

        `modes`: only these, None for rollouts without a mode; empty: any. `wait`: seconds to wait for a
        rollout if the queue has none; the answer comes as soon as one can be claimed, and is empty at the
        end. The deadline of the call is `wait` and the client's timeout together.

        An answer lost on its way loses no claim: the retry has the same request id. One request id must
        not be used for two calls that are meant to claim twice. Raises InvalidArgumentError for a negative
        limit or wait.
        """
        return await self._send(calls.dequeue_rollouts(limit, modes, worker_id, wait, request_id))

    async def start_attempt(
        self, rollout_id: str, *, worker_id: str = "", request_id: str | None = None
    ) -> Rollout:
        """Claim one rollout by its id, whatever its number of attempts; its `attempt` is the claim.

        Takes it out of the queue, supersedes an attempt that still runs, reopens it where it succeeded or
        failed. Raises NotFoundError, and FailedPreconditionError for a cancelled rollout.
        """
        return await self._send(calls.start_attempt(rollout_id, worker_id, request_id))

    async def update_attempt(
        self,
        rollout_id: str,
        attempt_id: str,
        *,
        status: AttemptStatus | str | int | Unset | None = UNSET,
        failure: Failure | Unset | None = UNSET,
        worker_id: str | Unset | None = UNSET,
        last_heartbeat_time: datetime | Unset | None = UNSET,
        metadata: JSONObject | Unset | None = UNSET,
        sent_span_count: int | None = None,
        request_id: str | None = None,
    ) -> AttemptUpdate:
        """Report the outcome of an attempt, or change what is known about it.

        What is left out stays, None clears. `sent_span_count`: how many spans the runner has sent; the
        answer then tells how many of them are missing. `last_heartbeat_time` has a time zone; one in the
        future counts as now. Safe to repeat, also without a request id.

        Raises NotFoundError, InvalidArgumentError, and FailedPreconditionError if the attempt has decided
        its rollout by another status.
        """
        fields = {
            "status": status,
            "failure": failure,
            "worker_id": worker_id,
            "last_heartbeat_time": last_heartbeat_time,
            "metadata": metadata,
        }
        return await self._send(
            calls.update_attempt(rollout_id, attempt_id, fields, sent_span_count, request_id)
        )

    async def list_attempts(
        self, rollout_id: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[Attempt]:
        """List the attempts at a rollout by their sequence numbers, 100 a page unless said otherwise.

        Raises NotFoundError.
        """
        return await self._send(calls.list_attempts(rollout_id, page_size, page_token))

    async def get_attempt(self, rollout_id: str, attempt_id: str = "latest") -> Attempt:
        """Get one attempt. Raises NotFoundError."""
        return await self._send(calls.get_attempt(rollout_id, attempt_id))

    async def get_rollout(self, rollout_id: str) -> Rollout:
        """Get one rollout with its latest attempt. Raises NotFoundError."""
        return await self._send(calls.get_rollout(rollout_id))

    async def list_rollouts(
        self,
        *,
        statuses: Iterable[RolloutStatus | str | int] = (),
        rollout_ids: Iterable[str] = (),
        rollout_id_contains: str = "",
        modes: Iterable[RolloutMode | str | int | None] = (),
        group_ids: Iterable[str] = (),
        filter_logic: str | int = "and",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
        skip: int = 0,
        include_total_size: bool = False,
    ) -> Page[Rollout]:
        """List rollouts, one page of them, with their latest attempts.

        A filter that is empty takes part in nothing; the others are joined by `filter_logic`, "and" or
        "or". `order_by` is a field and a direction, "start_time desc" for instance; empty: the order of
        enqueueing. `page_size` 0: 100. `page_token`: the `next_page_token` of the page before, with the
        same filters and order. `skip`: rollouts to pass over first. `total_size` of the page is None unless
        `include_total_size`.

        Raises InvalidArgumentError.
        """
        return await self._send(
            calls.list_rollouts(
                statuses=statuses,
                rollout_ids=rollout_ids,
                rollout_id_contains=rollout_id_contains,
                modes=modes,
                group_ids=group_ids,
                filter_logic=filter_logic,
                order_by=order_by,
                page_size=page_size,
                page_token=page_token,
                skip=skip,
                include_total_size=include_total_size,
            )
        )

    async def iter_rollouts(
        self,
        *,
        statuses: Iterable[RolloutStatus | str | int] = (),
        rollout_ids: Iterable[str] = (),
        rollout_id_contains: str = "",
        modes: Iterable[RolloutMode | str | int | None] = (),
        group_ids: Iterable[str] = (),
        filter_logic: str | int = "and",
        order_by: str = "",
        page_size: int = 0,
        skip: int = 0,
    ) -> AsyncIterator[Rollout]:
        """Iterate over all rollouts that `list_rollouts` would list, page after page.

        Complete and without doubles among those that match throughout, whatever is written meanwhile.
        """
        call = calls.list_rollouts(
            statuses=statuses,
            rollout_ids=rollout_ids,
            rollout_id_contains=rollout_id_contains,
            modes=modes,
            group_ids=group_ids,
            filter_logic=filter_logic,
            order_by=order_by,
            page_size=page_size,
            skip=skip,
        )
        while True:
            page = await self._send(call)
            for rollout in page:
                yield rollout
            if not page.next_page_token:
                return
            call = call.for_page(page.next_page_token)

    async def update_rollout(
        self,
        rollout_id: str,
        *,
        status: RolloutStatus | str | int | Unset | None = UNSET,
        input: Any = UNSET,  # noqa: A002
        mode: RolloutMode | str | int | Unset | None = UNSET,
        priority: int | Unset | None = UNSET,
        group_id: str | Unset | None = UNSET,
        resources_id: str | Unset | None = UNSET,
        config: RolloutConfig | Unset | None = UNSET,
        metadata: JSONObject | Unset | None = UNSET,
        request_id: str | None = None,
    ) -> Rollout:
        """Change a rollout. What is left out stays, None clears; `input=None` is the JSON value null.

        Status "queuing" or "requeuing" puts it at the tail of the queue and reopens a finished one;
        "succeeded", "failed" and "cancelled" finish it. Raises NotFoundError, InvalidArgumentError, and
        FailedPreconditionError for a status that it cannot take.
        """
        fields = {
            "status": status,
            "input": input,
            "mode": mode,
            "priority": priority,
            "group_id": group_id,
            "resources_id": resources_id,
            "config": config,
            "metadata": metadata,
        }
        return await self._send(calls.update_rollout(rollout_id, fields, request_id))

    async def cancel_rollouts(
        self, rollout_ids: Iterable[str], *, request_id: str | None = None
    ) -> list[Rollout]:
        """Cancel rollouts: out of the queue, finished, their runners told to stop.

        Those that have finished before stay as they are, as the answer shows. All or none: raises
        NotFoundError if one is unknown.
        """
        return await self._send(calls.cancel_rollouts(rollout_ids, request_id))

    async def heartbeat(
        self,
        worker_id: str,
        *,
        stats: JSONObject | None = None,
        attempts: Iterable[Attempt | Rollout | Sequence[str]] = (),
    ) -> HeartbeatReply:
        """Tell that a worker lives, and what it works on.

        `stats`: a JSON object about the worker; None: what is stored stays. `attempts`: the attempts that
        it works on, as attempts, claimed rollouts, or pairs (rollout id, attempt id). The answer names
        those that it should stop; unknown ones are among them, and no error.
        """
        return await self._send(calls.heartbeat(worker_id, stats, attempts))

    async def get_worker(self, worker_id: str) -> Worker:
        """Get one worker. Raises NotFoundError."""
        return await self._send(calls.get_worker(worker_id))

    async def list_workers(
        self,
        *,
        statuses: Iterable[WorkerStatus | str | int] = (),
        worker_id_contains: str = "",
        filter_logic: str | int = "and",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
    ) -> Page[Worker]:
        """List workers, one page of them, by id unless `order_by` says otherwise ("status desc").

        Filters, order and pages work as in `list_rollouts`. Raises InvalidArgumentError.
        """
        return await self._send(
            calls.list_workers(
                statuses=statuses,
                worker_id_contains=worker_id_contains,
                filter_logic=filter_logic,
                order_by=order_by,
                page_size=page_size,
                page_token=page_token,
            )
        )
