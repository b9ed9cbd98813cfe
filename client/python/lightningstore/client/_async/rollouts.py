"""Rollouts, in the asyncio client: enqueue, get, list, update, cancel, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import control as calls
from lightningstore.client._values.convert import JSONObject
from lightningstore.client.values import (
    UNSET,
    DeleteResult,
    GroupSpec,
    Page,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutSpec,
    RolloutStatus,
    Unset,
)


class AsyncRolloutCalls(AsyncCaller):
    """The calls on rollouts. Statuses and modes are passed as enums or as their words."""

    async def enqueue_rollouts(
        self,
        specs: Iterable[RolloutSpec | Mapping[str, Any]],
        *,
        groups: Iterable[GroupSpec | Mapping[str, Any]] = (),
        request_id: str | None = None,
    ) -> list[Rollout]:
        """Add rollouts to the queue, and create groups: all of them or, on any error, none.

        Each rollout without an id gets one from the client, so that a retry creates no second rollout. Enqueuing
        an id that exists, with the same content, returns the stored rollout. A list above the server's limit
        (10,000 by default) is not split, because the parts would not be atomic.

        Args:
            specs: The rollouts to create: `RolloutSpec` objects, or mappings with the same fields.
            groups: Groups to create: `GroupSpec` objects, or mappings with the same fields. Their members are the
                rollouts with their `group_id`, of this call and of later ones.
            request_id: Id of the call for retries of your own. The same id gets the same answer for 10 minutes.
                None: the client creates one.

        Returns:
            The stored rollouts, in the order of `specs`.

        Raises:
            AlreadyExistsError: A rollout id exists with other content, or a group with another size or deadline.
            FailedPreconditionError: A group takes no more members. `reason` is ERROR_REASON_GROUP_FULL.
            NotFoundError: The resources of a rollout do not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            ResourceExhaustedError: The list exceeds a limit, or the queue is full.
            TypeError: A spec has unknown fields, or a part of an input has no JSON.
            ValueError: A number has no JSON, or a text is not valid UTF-8.

        Example:
            rollouts = await store.enqueue_rollouts(
                [{"input": {"question": n}, "group_id": "step-1"} for n in range(8)]
            )
            assert rollouts[0].status == "queuing"
        """
        return await self._send(calls.enqueue_rollouts(specs, groups, request_id))

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
        queue: str = "",
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> Rollout:
        """Add one rollout to the queue.

        Args:
            input: The task of the agent: any value with JSON, also a dataclass, a pydantic model or a numpy value.
            mode: Purpose of the rollout: "train", "val" or "test". None: unspecified.
            priority: Rollouts with a higher priority are claimed first.
            group_id: Name shared by rollouts that belong together, such as the samples of one task.
            resources_id: The resources that the agent works with. Empty: the latest ones at the time of this call.
                "latest": the latest ones at each claim, retries included.
            config: Time limits and retries. None: no time limits, one attempt.
            metadata: A JSON object of your own, at most 16 MiB by default.
            rollout_id: Id of the rollout. Empty: the client creates one.
            queue: Task queue that it is claimed from, named like a namespace. Empty: the default queue.
            labels: Labels for filters, at most 32. None: none.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The stored rollout.

        Raises:
            AlreadyExistsError: The rollout id exists with other content.
            FailedPreconditionError: The group takes no more members.
            NotFoundError: The resources do not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            ResourceExhaustedError: The input exceeds its limit (16 MiB by default), or the queue is full.
            TypeError: A part of the input or of the metadata has no JSON.
            ValueError: A number has no JSON, or a text is not valid UTF-8.

        Example:
            rollout = await store.enqueue_rollout({"question": 1}, mode="train", priority=1)
            assert rollout.input == {"question": 1}
        """
        spec = RolloutSpec(
            *(input, mode, priority, group_id, resources_id, config, metadata, rollout_id),
            queue=queue,
            labels=labels,
        )
        return (await self.enqueue_rollouts([spec], request_id=request_id))[0]

    async def get_rollout(self, rollout_id: str) -> Rollout:
        """Get one rollout with its latest attempt.

        Args:
            rollout_id: Id of the rollout.

        Returns:
            The rollout.

        Raises:
            NotFoundError: The rollout does not exist.
        """
        return await self._send(calls.get_rollout(rollout_id))

    async def list_rollouts(
        self,
        *,
        statuses: Iterable[RolloutStatus | str | int] = (),
        rollout_ids: Iterable[str] = (),
        rollout_id_contains: str = "",
        modes: Iterable[RolloutMode | str | int | None] = (),
        group_ids: Iterable[str] = (),
        queues: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        filter_logic: str | int = "and",
        min_reward: float | None = None,
        max_reward: float | None = None,
        failure_contains: str = "",
        order_by: str = "",
        page_size: int = 0,
        page_token: str = "",
        skip: int = 0,
        include_total_size: bool = False,
        omit_payloads: bool = False,
    ) -> Page[Rollout]:
        """List one page of rollouts, with their latest attempts.

        Args:
            statuses: Only rollouts with one of these statuses. Empty filters are ignored, here and below.
            rollout_ids: Only rollouts with one of these ids.
            rollout_id_contains: Only rollouts whose id contains this text.
            modes: Only rollouts with one of these modes; None stands for rollouts without a mode.
            group_ids: Only rollouts of these groups.
            queues: Only rollouts of these task queues; "" is the default queue.
            labels: Only rollouts that have all of these labels with these values.
            filter_logic: How the filters are combined: "and" or "or".
            min_reward: Only rollouts whose latest attempt has at least this reward. None: no minimum.
            max_reward: Only rollouts whose latest attempt has at most this reward. None: no maximum.
            failure_contains: Only rollouts whose latest attempt has a failure that contains this text as "type: message",
                whatever the case of A-Z.
            order_by: A field and a direction, such as "start_time desc" or "reward desc". Empty: the order of enqueuing.
            page_size: Maximum rollouts in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page, with the same filters and order.
            skip: Number of rollouts to leave out before the first page.
            include_total_size: Whether to count the matching rollouts on all pages.
            omit_payloads: Whether to leave out inputs and metadata, which may be large. `payloads_omitted` is then true.

        Returns:
            The page. Its `total_size` is None unless `include_total_size` is set.

        Raises:
            InvalidArgumentError: A filter, the order or the page token is invalid.
            ValueError: A status or mode is unknown.
        """
        return await self._send(
            calls.list_rollouts(
                statuses=statuses,
                rollout_ids=rollout_ids,
                rollout_id_contains=rollout_id_contains,
                modes=modes,
                group_ids=group_ids,
                queues=queues,
                labels=labels,
                filter_logic=filter_logic,
                order_by=order_by,
                min_reward=min_reward,
                max_reward=max_reward,
                failure_contains=failure_contains,
                page_size=page_size,
                page_token=page_token,
                skip=skip,
                include_total_size=include_total_size,
                omit_payloads=omit_payloads,
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
        queues: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        filter_logic: str | int = "and",
        min_reward: float | None = None,
        max_reward: float | None = None,
        failure_contains: str = "",
        order_by: str = "",
        page_size: int = 0,
        skip: int = 0,
        omit_payloads: bool = False,
    ) -> AsyncIterator[Rollout]:
        """Iterate over all rollouts that `list_rollouts` would list, page after page.

        Rollouts that match throughout are complete and occur once, even while others are written.

        Args:
            statuses: Only rollouts with one of these statuses. Empty filters are ignored, here and below.
            rollout_ids: Only rollouts with one of these ids.
            rollout_id_contains: Only rollouts whose id contains this text.
            modes: Only rollouts with one of these modes; None stands for rollouts without a mode.
            group_ids: Only rollouts of these groups.
            queues: Only rollouts of these task queues; "" is the default queue.
            labels: Only rollouts that have all of these labels with these values.
            filter_logic: How the filters are combined: "and" or "or".
            min_reward: Only rollouts whose latest attempt has at least this reward. None: no minimum.
            max_reward: Only rollouts whose latest attempt has at most this reward. None: no maximum.
            failure_contains: Only rollouts whose latest attempt has a failure that contains this text as "type: message",
                whatever the case of A-Z.
            order_by: A field and a direction, such as "start_time desc" or "reward desc". Empty: the order of enqueuing.
            page_size: Maximum rollouts requested at a time. 0: 100.
            skip: Number of rollouts to leave out first.
            omit_payloads: Whether to leave out inputs and metadata, which may be large. `payloads_omitted` is then true.

        Yields:
            The rollouts, each with its latest attempt.

        Raises:
            InvalidArgumentError: A filter or the order is invalid.
            ValueError: A status or mode is unknown.

        Example:
            failed = [r.rollout_id async for r in store.iter_rollouts(statuses=["failed"])]
        """
        call = calls.list_rollouts(
            statuses=statuses,
            rollout_ids=rollout_ids,
            rollout_id_contains=rollout_id_contains,
            modes=modes,
            group_ids=group_ids,
            queues=queues,
            labels=labels,
            filter_logic=filter_logic,
            order_by=order_by,
            min_reward=min_reward,
            max_reward=max_reward,
            failure_contains=failure_contains,
            page_size=page_size,
            skip=skip,
            omit_payloads=omit_payloads,
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
        queue: str | Unset | None = UNSET,
        labels: Mapping[str, str] | Unset | None = UNSET,
        request_id: str | None = None,
    ) -> Rollout:
        """Change a rollout. UNSET, the default of each field, leaves it unchanged; None clears it.

        Args:
            rollout_id: Id of the rollout.
            status: "queuing" or "requeuing" puts the rollout at the tail of the queue, also a finished one.
                "succeeded", "failed" and "cancelled" finish it.
            input: The task of the agent. None is the JSON value null.
            mode: Purpose of the rollout: "train", "val" or "test".
            priority: Rollouts with a higher priority are claimed first.
            group_id: Name shared by rollouts that belong together.
            resources_id: The resources that the agent works with. "latest": the latest ones at each claim.
            config: Time limits and retries.
            metadata: A JSON object of your own.
            queue: Task queue that it is claimed from. A queued rollout keeps its place in time.
            labels: All labels; they replace the previous ones.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The rollout after the change.

        Raises:
            NotFoundError: The rollout or the resources do not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            FailedPreconditionError: The rollout cannot change to this status, or the group takes no more members.
            TypeError: A part of the input or of the metadata has no JSON.
            ValueError: A number has no JSON, or a status or mode is unknown.
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
            "queue": queue,
            "labels": labels,
        }
        return await self._send(calls.update_rollout(rollout_id, fields, request_id))

    async def cancel_rollouts(
        self, rollout_ids: Iterable[str], *, request_id: str | None = None
    ) -> list[Rollout]:
        """Cancel rollouts: take them out of the queue, finish them, and tell their runners to stop.

        Rollouts that had finished stay as they are. Either all are processed or none.

        Args:
            rollout_ids: Ids of the rollouts, at most 10,000 by default.
            request_id: Id of the call for retries of your own. Retries are safe without one.

        Returns:
            The rollouts after the call, in the order of `rollout_ids`.

        Raises:
            NotFoundError: A rollout does not exist.
            TypeError: `rollout_ids` is a single string.
        """
        return await self._send(calls.cancel_rollouts(rollout_ids, request_id))

    async def delete_rollouts(self, rollout_ids: Iterable[str]) -> DeleteResult:
        """Delete finished rollouts with their attempts and spans. If one has not finished, none is deleted.

        Unknown ids are not an error, so the call is safe to repeat. A list above the server's limit (10,000 by
        default) is not split.

        Args:
            rollout_ids: Ids of the rollouts.

        Returns:
            The ids that were deleted, and those that were not.

        Raises:
            FailedPreconditionError: A rollout has not finished, or its attempt is still live. `reason` is
                ERROR_REASON_ROLLOUT_NOT_FINISHED.
            ResourceExhaustedError: The list exceeds the limit.
            TypeError: `rollout_ids` is a single string.

        Example:
            rollout = await store.enqueue_rollout({"question": 1})
            await store.cancel_rollouts([rollout.rollout_id])
            result = await store.delete_rollouts([rollout.rollout_id])
            assert result.deleted == [rollout.rollout_id]
        """
        return await self._send(calls.delete_rollouts(rollout_ids))
