"""Claims, in the asyncio client: rollouts for a worker, each with a new attempt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import control as calls
from lightningstore.client._values.convert import JSONObject
from lightningstore.client.values import (
    PauseResult,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutSpec,
)


class AsyncClaimCalls(AsyncCaller):
    """The calls that claim rollouts."""

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
        queue: str = "",
        labels: Mapping[str, str] | None = None,
        worker_id: str = "",
        request_id: str | None = None,
    ) -> Rollout:
        """Create a rollout and claim it at once. It never enters the queue.

        Args:
            input: The task of the agent: any value with JSON, also a dataclass, a pydantic model or a numpy value.
            mode: Purpose of the rollout: "train", "val" or "test". None: unspecified.
            priority: Priority of retries: those with a higher priority are claimed first.
            group_id: Name shared by rollouts that belong together.
            resources_id: The resources that the agent works with. Empty: the latest ones.
                "latest": those that are the latest at each claim, retries included.
            config: Time limits and retries. None: no time limits, one attempt.
            metadata: A JSON object of your own, at most 16 MiB by default.
            rollout_id: Id of the rollout. Empty: the server creates one.
            queue: Task queue of its retries, named like a namespace. Empty: the default queue.
            labels: Labels for filters, at most 32. None: none.
            worker_id: The worker that claims the rollout. Empty: unspecified.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The rollout; its `attempt` is the claim.

        Raises:
            AlreadyExistsError: The rollout id exists.
            NotFoundError: The resources do not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            ResourceExhaustedError: The input exceeds its limit (16 MiB by default).
            TypeError: A part of the input or of the metadata has no JSON.
            ValueError: A number has no JSON, or a text is not valid UTF-8.

        Example:
            rollout = await store.start_rollout({"question": 1}, worker_id="notebook")
            await store.update_attempt(rollout.rollout_id, "latest", status="succeeded")
        """
        spec = RolloutSpec(
            *(input, mode, priority, group_id, resources_id, config, metadata, rollout_id),
            queue=queue,
            labels=labels,
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
        queues: Iterable[str] = (),
    ) -> list[Rollout]:
        """Claim rollouts from task queues, by priority and then in the order of enqueuing.

        A response that is lost loses no claim: the retry has the same request id and gets the same claims. Never use
        one request id for two calls that should claim twice.

        Args:
            limit: Maximum rollouts to claim. 0 claims none.
            modes: Only rollouts with one of these modes; None stands for rollouts without a mode. Empty: any.
            worker_id: The worker that claims. Empty: unspecified.
            wait: Seconds to wait while the queue is empty. The call returns as soon as a rollout can be claimed. The
                deadline of the call is `wait` plus the timeout of the client.
            request_id: Id of the call for retries of your own. None: the client creates one.
            queues: Names of the task queues to claim from, at most 1,000; "" is the default queue. Empty: the default
                queue only.

        Returns:
            The claimed rollouts; the `attempt` of each is the claim. Empty if there was nothing to claim.

        Raises:
            InvalidArgumentError: `limit` or `wait` is negative, or the name of a queue is invalid.
            TypeError: `queues` is a single string.
            ValueError: A mode is unknown.

        Example:
            await store.enqueue_rollout({"question": 1})
            for rollout in await store.dequeue_rollouts(4, worker_id="w-1", wait=20):
                print(rollout.input, rollout.attempt.attempt_id)
        """
        return await self._send(
            calls.dequeue_rollouts(limit, modes, worker_id, wait, request_id, queues)
        )

    async def start_attempt(
        self, rollout_id: str, *, worker_id: str = "", request_id: str | None = None
    ) -> Rollout:
        """Claim one rollout by its id, whatever its number of attempts.

        The rollout leaves the queue, a running attempt is superseded, and a succeeded or failed rollout is reopened.

        Args:
            rollout_id: Id of the rollout.
            worker_id: The worker that claims. Empty: unspecified.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The rollout; its `attempt` is the claim.

        Raises:
            NotFoundError: The rollout does not exist.
            FailedPreconditionError: The rollout is cancelled.
        """
        return await self._send(calls.start_attempt(rollout_id, worker_id, request_id))

    async def pause_claims(self, reason: str = "", *, request_id: str | None = None) -> PauseResult:
        """Pause claims: no attempt begins until `resume_claims`, also after a restart of the server.

        Long polls keep waiting, retries stay in the queue, and attempts that run go on. `start_rollout` and
        `start_attempt` fail. Pausing paused claims keeps the start time and replaces the reason.

        Args:
            reason: Reason for the pause, for people. At most 256 characters.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The pause, and the number of attempts that run. `get_statistics` shows how it falls.

        Raises:
            InvalidArgumentError: The reason is too long.

        Example:
            paused = await store.pause_claims("exchanging weights")
            print(paused.running_attempt_count)
            await store.resume_claims()
        """
        return await self._send(calls.pause_claims(reason, request_id))

    async def resume_claims(self, *, request_id: str | None = None) -> PauseResult:
        """Resume claims. Long polls are served at once, in the order in which they came.

        Args:
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The pause that the call ended, None if claims were not paused, and the number of attempts that run.

        Raises:
            InvalidArgumentError: The request id has more than 64 characters.
        """
        return await self._send(calls.resume_claims(request_id))
