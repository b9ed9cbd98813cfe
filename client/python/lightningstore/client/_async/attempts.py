"""Attempts, in the asyncio client: report their outcomes, get, list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from lightningstore.client._async.caller import AsyncCaller
from lightningstore.client._calls import control as calls
from lightningstore.client._values.convert import JSONObject
from lightningstore.client.values import (
    UNSET,
    Attempt,
    AttemptStatus,
    AttemptUpdate,
    Failure,
    Page,
    Unset,
)


class AsyncAttemptCalls(AsyncCaller):
    """The calls on attempts. Wherever an attempt id is passed, "latest" stands for the newest attempt."""

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
        reward: float | Unset | None = UNSET,
        scores: Mapping[str, float | None] | Unset | None = UNSET,
        sent_span_count: int | None = None,
        request_id: str | None = None,
    ) -> AttemptUpdate:
        """Report the outcome of an attempt, or change its record.

        UNSET, the default of each field, leaves it unchanged; None clears it. Retries are safe without a request id.
        The reward and the scores may be set at any time, also after the outcome is final.

        Args:
            rollout_id: Id of the rollout.
            attempt_id: Id of the attempt, or "latest".
            status: "succeeded" or "failed" report the outcome.
            failure: Why the attempt failed.
            worker_id: The worker that works on the attempt.
            last_heartbeat_time: Time of the last heartbeat, with a time zone. A time in the future counts as now.
            metadata: A JSON object of your own.
            reward: How well the attempt did. None removes what was reported: the reward is then that of its last reward
                span, if there is one.
            scores: Other scores by name, which leave those of other names as they are. A value of None removes a score.
                None instead of a mapping removes all of them.
            sent_span_count: Number of spans that the runner sent. The answer then says how many are missing.
            request_id: Id of the call for retries of your own. None: none.

        Returns:
            The attempt after the change, the number of missing spans, and whether the runner should stop.

        Raises:
            NotFoundError: The rollout or the attempt does not exist.
            InvalidArgumentError: A field is invalid; `field_violations` names it.
            FailedPreconditionError: The attempt has decided its rollout by another status.
            TypeError: A part of the metadata has no JSON, or the reward or a score is not a number.
            ValueError: `last_heartbeat_time` has no time zone, the status is unknown, or the reward or a score is not
                finite.

        Example:
            rollout = await store.start_rollout({"question": 1})
            update = await store.update_attempt(
                rollout.rollout_id,
                rollout.attempt.attempt_id,
                status="failed",
                failure=Failure("ValueError", "the answer is empty", retryable=False),
            )
            assert update.attempt.status == "failed"
        """
        fields = {
            "status": status,
            "failure": failure,
            "worker_id": worker_id,
            "last_heartbeat_time": last_heartbeat_time,
            "metadata": metadata,
            "reward": reward,
            "scores": scores,
        }
        return await self._send(
            calls.update_attempt(rollout_id, attempt_id, fields, sent_span_count, request_id)
        )

    async def list_attempts(
        self, rollout_id: str, *, page_size: int = 0, page_token: str = ""
    ) -> Page[Attempt]:
        """List the attempts of a rollout by their sequence numbers.

        Args:
            rollout_id: Id of the rollout.
            page_size: Maximum attempts in the page. 0: 100. The server limits it to 1,000 by default.
            page_token: `next_page_token` of the previous page.

        Returns:
            One page of attempts.

        Raises:
            NotFoundError: The rollout does not exist.
            InvalidArgumentError: The page size or page token is invalid.
        """
        return await self._send(calls.list_attempts(rollout_id, page_size, page_token))

    async def get_attempt(self, rollout_id: str, attempt_id: str = "latest") -> Attempt:
        """Get one attempt.

        Args:
            rollout_id: Id of the rollout.
            attempt_id: Id of the attempt, or "latest".

        Returns:
            The attempt.

        Raises:
            NotFoundError: The rollout or the attempt does not exist.
        """
        return await self._send(calls.get_attempt(rollout_id, attempt_id))
