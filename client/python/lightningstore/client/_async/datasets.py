"""Export and import of whole rollouts, in the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from lightningstore.client._async import streams
from lightningstore.client._async.attempts import AsyncAttemptCalls
from lightningstore.client._async.rollouts import AsyncRolloutCalls
from lightningstore.client._async.server import AsyncServerCalls
from lightningstore.client._async.spans import AsyncSpanCalls
from lightningstore.client._datasets import selection
from lightningstore.client._datasets.exported import ExportedRollout, ImportResult, import_messages
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.values import Rollout, RolloutMode, RolloutStatus
from lightningstore.v1.import_pb2 import ImportRolloutsRequest


class AsyncDatasetCalls(AsyncRolloutCalls, AsyncAttemptCalls, AsyncSpanCalls, AsyncServerCalls):
    """The calls that copy whole rollouts, made of the others."""

    def export_rollouts(
        self,
        *,
        after_completion_number: int = 0,
        through_completion_number: int | None = None,
        statuses: Iterable[RolloutStatus | str | int] = (),
        rollout_ids: Iterable[str] = (),
        rollout_id_contains: str = "",
        modes: Iterable[RolloutMode | str | int | None] = (),
        group_ids: Iterable[str] = (),
        queues: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        filter_logic: str | int = "and",
        spans: bool = True,
        triplets: bool | Mapping[str, Any] = False,
        samples: bool | Mapping[str, Any] = False,
        skip_evicted: bool = False,
    ) -> AsyncIterator[ExportedRollout]:
        """Iterate over finished rollouts with their attempts and spans, in the order of completion numbers.

        One rollout is in memory at a time, with its spans. After a broken connection the export resumes; no rollout
        occurs twice. Rollouts that are removed meanwhile are left out.

        Args:
            after_completion_number: Only finishes with a greater number. Pass the last one of an earlier export to
                continue it.
            through_completion_number: Last completion number to export. None: the last finish before the call.
            statuses: Only rollouts with one of these statuses. Empty filters are ignored, here and below.
            rollout_ids: Only rollouts with one of these ids.
            rollout_id_contains: Only rollouts whose id contains this text.
            modes: Only rollouts with one of these modes; None stands for rollouts without a mode.
            group_ids: Only rollouts of these groups.
            queues: Only rollouts of these task queues; "" is the default queue.
            labels: Only rollouts that have all of these labels with these values.
            filter_logic: How the filters are combined: "and" or "or".
            spans: Whether to export spans.
            triplets: Whether to export triplets, or their options by name, as `list_triplets` takes them.
            samples: Whether to export samples, or their options by name, as `list_samples` takes them. `SampleWriter`
                writes them.
            skip_evicted: Whether to leave out rollouts whose spans were evicted from memory.

        Returns:
            An iterator over the rollouts, to be iterated once.

        Raises:
            ValueError: A status or mode is unknown.
            InvalidArgumentError: While iterating: an option is invalid.
            FailedPreconditionError: While iterating: spans were evicted, and `skip_evicted` is not set.

        Example:
            exported = [r async for r in store.export_rollouts(statuses=["succeeded"], spans=False)]
            print([(item.rollout.rollout_id, len(item.attempts)) for item in exported])
        """
        rollout_filter = selection.RolloutFilter(
            statuses,
            rollout_ids,
            rollout_id_contains,
            modes,
            group_ids,
            filter_logic,
            queues,
            labels,
        )
        parts = selection.Parts(
            spans, selection.options_of(triplets), selection.options_of(samples), skip_evicted
        )
        return self._export(
            rollout_filter, after_completion_number, through_completion_number, parts
        )

    async def _export(
        self,
        rollout_filter: selection.RolloutFilter,
        after: int,
        through: int | None,
        parts: selection.Parts,
    ) -> AsyncIterator[ExportedRollout]:
        last = (await self.get_statistics()).last_completion_number
        state = selection.FinishState(
            rollout_filter, after, last if through is None else min(through, last)
        )
        if state.done:
            return
        async with aclosing(streams.query(self._transport, state, self._timeout)) as rollouts:
            async for rollout in rollouts:
                if rollout is None:
                    return
                try:
                    exported = await self._exported(rollout, parts)
                except LightningStoreError as error:
                    if not parts.passes_over(error):
                        raise
                else:
                    yield exported

    async def _exported(self, rollout: Rollout, parts: selection.Parts) -> ExportedRollout:
        rollout_id = rollout.rollout_id
        attempts = selection.attempts_at_hand(rollout)
        if attempts is None:
            attempts, page = [], await self.list_attempts(rollout_id, page_size=1000)
            attempts.extend(page)
            while page.next_page_token:
                page = await self.list_attempts(
                    rollout_id, page_size=1000, page_token=page.next_page_token
                )
                attempts.extend(page)
        if rollout.payloads_omitted:
            rollout.fill(await self.get_rollout(rollout_id))
        batches = triplets = samples = None
        if parts.spans:
            state = selection.BatchState(rollout_id)
            async for _ in streams.query(self._transport, state, self._timeout):
                pass
            batches = state.batches
        if parts.triplets is not None:
            triplets = [t async for t in self.list_triplets([rollout_id], **parts.triplets)]
        if parts.samples is not None:
            samples = [s async for s in self.list_samples([rollout_id], **parts.samples)]
        reward = await self._traced_reward(rollout) if parts.needs_reward(rollout) else None
        return selection.exported(rollout, attempts, batches, triplets, samples, reward)

    async def _traced_reward(self, rollout: Rollout) -> float | None:
        """Return the last reward of the latest attempt, None if its spans were evicted."""
        try:
            attempts = self.list_triplets(
                [rollout.rollout_id], rollout.latest_attempt_id, llm_call_match=selection.NO_CALL
            )
            found = [attempt async for attempt in attempts]
        except LightningStoreError as error:
            if error.reason == "ERROR_REASON_SPANS_EVICTED":
                return None
            raise
        return selection.last_reward(found)

    async def import_rollouts(
        self,
        rollouts: Iterable[ExportedRollout | ImportRolloutsRequest]
        | AsyncIterable[ExportedRollout | ImportRolloutsRequest],
    ) -> ImportResult:
        """Store finished rollouts of another store, with their attempts and spans, over one stream.

        Ids, times, statuses and sequence ids are kept. Completion numbers are assigned by this store, in the order of
        the rollouts. A rollout that exists with the same content counts as known, so imports can be repeated. After a
        broken connection a list, or another iterable that can be iterated again, is sent again.

        Args:
            rollouts: What `export_rollouts` or `read_dataset` yields, or messages of the contract.

        Returns:
            The numbers of imported and known rollouts and of their spans. Everything that is counted is durable.

        Raises:
            AlreadyExistsError: An id exists with other content. Rollouts before it are stored.
            InvalidArgumentError: A field is invalid. The error names the field and the position of the message;
                rollouts before it are stored.
            UnavailableError: The connection broke, and `rollouts` is an iterator or the client's timeout has passed.
        """
        return await self._upload(
            "ImportRollouts", rollouts, import_messages, ImportResult.from_message
        )
