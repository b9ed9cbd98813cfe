# Generated from _async/datasets.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Export and import, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._datasets import selection
from lightningstore.client._datasets.exported import ExportedRollout, ImportResult, import_messages
from lightningstore.client._sync import streams
from lightningstore.client._sync.control import ControlCalls
from lightningstore.client._sync.traces import TraceCalls
from lightningstore.client._transport.protocols import Transport
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.values import Rollout, RolloutMode, RolloutStatus
from lightningstore.v1.import_pb2 import ImportRolloutsRequest

Item = TypeVar("Item")
T = TypeVar("T")


class DatasetCalls(ControlCalls, TraceCalls):
    """The calls that carry whole rollouts, over all the others."""

    _transport: Transport
    _timeout: float | None

    def _upload(
        self,
        method: str,
        items: Iterable[Item],
        messages: Callable[[Item], Iterable[Message]],
        shape: Callable[[Any], T],
    ) -> T:
        raise NotImplementedError

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
        filter_logic: str | int = "and",
        spans: bool = True,
        triplets: bool | Mapping[str, Any] = False,
        skip_evicted: bool = False,
    ) -> Iterator[ExportedRollout]:
        """Iterate over finished rollouts with their attempts and spans, in the order of completion numbers.

        The filters are those of `list_rollouts`. `after_completion_number`: where to go on;
        `through_completion_number`: where to end, None: with the last finish before the call. `spans`: whether
        to bring the spans. `triplets`: whether to bring triplets, or the options for them by name, as
        `list_triplets` takes them. `skip_evicted`: leave out rollouts whose spans a store in memory has
        evicted. One rollout is held at a time, with its spans.

        Raises ValueError for an unknown word. While iterating raises InvalidArgumentError, and
        FailedPreconditionError if spans were evicted. A connection that breaks is taken up again; no rollout
        comes twice. One that is removed meanwhile is left out.
        """
        wanted = selection.RolloutFilter(
            statuses, rollout_ids, rollout_id_contains, modes, group_ids, filter_logic
        )
        parts = selection.Parts(spans, selection.triplet_options(triplets), skip_evicted)
        return self._export(wanted, after_completion_number, through_completion_number, parts)

    def _export(
        self,
        wanted: selection.RolloutFilter,
        after: int,
        through: int | None,
        parts: selection.Parts,
    ) -> Iterator[ExportedRollout]:
        last = self.get_statistics().last_completion_number
        state = selection.FinishState(
            wanted, after, last if through is None else min(through, last)
        )
        if state.done:
            return
        with closing(streams.query(self._transport, state, self._timeout)) as rollouts:
            for rollout in rollouts:
                if rollout is None:
                    return
                try:
                    found = self._exported(rollout, parts)
                except LightningStoreError as error:
                    if not parts.passes_over(error):
                        raise
                else:
                    yield found

    def _exported(self, rollout: Rollout, parts: selection.Parts) -> ExportedRollout:
        rollout_id = rollout.rollout_id
        attempts = selection.attempts_at_hand(rollout)
        if attempts is None:
            attempts, page = [], self.list_attempts(rollout_id, page_size=1000)
            attempts.extend(page)
            while page.next_page_token:
                page = self.list_attempts(
                    rollout_id, page_size=1000, page_token=page.next_page_token
                )
                attempts.extend(page)
        if rollout.payloads_omitted:
            rollout.fill(self.get_rollout(rollout_id))
        batches = triplets = None
        if parts.spans:
            state = selection.BatchState(rollout_id)
            for _ in streams.query(self._transport, state, self._timeout):
                pass
            batches = state.batches
        if parts.triplets is not None:
            triplets = list(self.list_triplets([rollout_id], **parts.triplets))
        return selection.exported(rollout, attempts, batches, triplets)

    def import_rollouts(
        self,
        rollouts: Iterable[ExportedRollout | ImportRolloutsRequest],
    ) -> ImportResult:
        """Store finished rollouts of another store, with their attempts and spans, over one stream.

        Ids, times, statuses and sequence ids are kept; completion numbers are this store's own, in the order
        of the rollouts. `rollouts`: what `export_rollouts` yields, or messages of the contract. A rollout that
        is there already with the same content is counted as known, so an import may be repeated. A list, or
        what can be iterated again, is sent again when the connection breaks; an iterator is not:
        UnavailableError.

        Raises AlreadyExistsError where an id is taken by other content, and InvalidArgumentError, which names
        the field and the place of the message: what came before it is stored.
        """
        return self._upload("ImportRollouts", rollouts, import_messages, ImportResult.from_message)
