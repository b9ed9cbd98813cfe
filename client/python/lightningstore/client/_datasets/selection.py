"""What of a store is exported, without I/O: which rollouts, their attempts, their spans."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from lightningstore.client._datasets.batches import batch_like
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client._values import convert
from lightningstore.client._values.rollouts import FILTER_LOGIC, ROLLOUT_MODE, ROLLOUT_STATUS
from lightningstore.client._values.samples import AttemptSamples
from lightningstore.client._values.spans import Span
from lightningstore.client._values.triplets import AttemptTriplets
from lightningstore.client.errors import LightningStoreError
from lightningstore.client.values import Attempt, Rollout
from lightningstore.v1 import completion_pb2, rollout_pb2, span_pb2

FINISHED = ("succeeded", "failed", "cancelled")


class RolloutFilter:
    """Which rollouts: the filters of ListRollouts."""

    def __init__(
        self,
        statuses: Iterable[str | int],
        rollout_ids: Iterable[str],
        rollout_id_contains: str,
        modes: Iterable[str | int | None],
        group_ids: Iterable[str],
        filter_logic: str | int,
        queues: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Take the filters.

        Raises ValueError for an unknown word and a status that is not final, TypeError for a string that is
        no list.
        """
        self._statuses = frozenset(convert.to_numbers(ROLLOUT_STATUS, statuses))
        final = convert.to_numbers(ROLLOUT_STATUS, FINISHED)
        if not self._statuses <= frozenset(final):
            raise ValueError(f"statuses: only what has finished is exported: {', '.join(FINISHED)}")
        self._ids = frozenset(convert.ids(rollout_ids, "rollout_ids"))
        self._contains = rollout_id_contains
        self._modes = frozenset(convert.to_numbers(ROLLOUT_MODE, modes))
        self._groups = frozenset(convert.ids(group_ids, "group_ids"))
        self._queues = frozenset(convert.ids(queues, "queues"))
        self._labels = convert.labels(labels).items()
        logic = convert.to_number(FILTER_LOGIC, filter_logic)
        self._any_of = logic == rollout_pb2.FILTER_LOGIC_OR

    def matches(self, record: rollout_pb2.Rollout) -> bool:
        """Tell whether a rollout is wanted."""
        tests = []
        if self._statuses:
            tests.append(record.status in self._statuses)
        if self._ids:
            tests.append(record.rollout_id in self._ids)
        if self._contains:
            tests.append(self._contains in record.rollout_id)
        if self._modes:
            tests.append(record.mode in self._modes)
        if self._groups:
            tests.append(record.group_id in self._groups)
        if self._queues:
            tests.append(record.queue in self._queues)
        if self._labels:
            tests.append(all(record.labels.get(key) == value for key, value in self._labels))
        return not tests or (any(tests) if self._any_of else all(tests))


class FinishState:
    """Where the reading of finished rollouts stands: those that had finished when it began, by number."""

    method = "WatchRollouts"

    def __init__(self, wanted: RolloutFilter, after: int, last: int) -> None:
        """Take the numbers after which it begins, and with which it ends."""
        self._wanted = wanted
        self._last = last
        self._begun = False
        self.through = after
        self.done = after >= last

    def request(self) -> completion_pb2.WatchRolloutsRequest:
        """Return what to ask the server for."""
        self._begun = False
        return completion_pb2.WatchRolloutsRequest(after_completion_number=self.through)

    def take(self, answer: completion_pb2.WatchRolloutsResponse) -> list[Rollout | None]:
        """Return the rollouts of an answer that are wanted, and None after the last one."""
        found: list[Rollout | None] = [
            Rollout(record)
            for record in answer.rollouts
            if record.completion_number <= self._last and self._wanted.matches(record)
        ]
        self.through = answer.through_completion_number
        # The first answer has no rollouts; a later one without any says that there are no more: the last
        # ones may have been reopened or removed since.
        if self.through >= self._last or (self._begun and not answer.rollouts):
            found.append(None)
        self._begun = True
        return found


class BatchState:
    """Where the reading of a rollout's spans stands, asked for from the beginning after a break."""

    method = "QuerySpans"

    def __init__(self, rollout_id: str) -> None:
        self._request = span_pb2.QuerySpansRequest(rollout_id=rollout_id)
        self.batches: list[span_pb2.SpanBatch] = []

    def request(self) -> span_pb2.QuerySpansRequest:
        """Return what to ask the server for."""
        self.batches = []
        return self._request

    def take(self, answer: span_pb2.QuerySpansResponse) -> Sequence[Span]:
        """Keep what came."""
        self.batches.extend(answer.batches)
        return ()


def attempts_at_hand(rollout: Rollout) -> list[Attempt] | None:
    """Return the attempts of a rollout if its message contains all of them.

    Args:
        rollout: A rollout, as a call returned it.

    Returns:
        The attempts. None: call `list_attempts`.
    """
    record = rollout.message
    if record.attempt_count == 0:
        return []
    if record.attempt_count > 1 or record.payloads_omitted:
        return None
    return [Attempt(record.latest_attempt)]


def exported(
    rollout: Rollout,
    attempts: Sequence[Attempt],
    batches: Sequence[span_pb2.SpanBatch] | None,
    triplets: Sequence[AttemptTriplets] | None,
    samples: Sequence[AttemptSamples] | None = None,
    traced_reward: float | None = None,
) -> ExportedRollout:
    """Put the parts together; how the store had cut the spans into batches shows no more."""
    attempts = attempts[: rollout.attempt_count]  # later ones are none of this finish
    if batches is not None:
        batches = _joined(attempts, batches)
        counts = dict.fromkeys((attempt.attempt_id for attempt in attempts), 0)
        for batch in batches:
            counts[batch.attempt_id] += len(batch.spans)
        for attempt in attempts:
            attempt.message.span_count = counts[attempt.attempt_id]
    return ExportedRollout(rollout, attempts, batches, triplets, traced_reward, samples)


def _joined(
    attempts: Sequence[Attempt], batches: Sequence[span_pb2.SpanBatch]
) -> list[span_pb2.SpanBatch]:
    """Return the spans attempt by attempt, those together that follow each other with one resource and scope."""
    of: dict[str, list[span_pb2.SpanBatch]] = {attempt.attempt_id: [] for attempt in attempts}
    sources: dict[str, bytes] = {}
    for batch in batches:
        joined = of.get(batch.attempt_id)
        if joined is None:
            continue  # of an attempt that has been made since
        source = batch_like(batch).SerializeToString(deterministic=True)
        if joined and sources[batch.attempt_id] == source:
            joined[-1].MergeFrom(span_pb2.SpanBatch(spans=batch.spans))
            joined[-1].sequence_ids.extend(batch.sequence_ids)
        else:
            joined.append(batch)
            sources[batch.attempt_id] = source
    return [batch for joined in of.values() for batch in joined]


#: A pattern that matches no name, so that all rewards come back without a call, and no triplet with them.
NO_CALL = r"[^\x00-\x{10FFFF}]"


def last_reward(found: Sequence[AttemptTriplets]) -> float | None:
    """Return the last reward of an attempt, out of an answer to `list_triplets` with `NO_CALL`."""
    rewards = [reward for attempt in found for reward in attempt.unmatched_rewards]
    return max(rewards, key=lambda reward: reward.sequence_id).value if rewards else None


def options_of(wanted: object) -> dict[str, Any] | None:
    """Return the options of `list_triplets` or `list_samples`, None if none are wanted: it may say just yes or no."""
    if isinstance(wanted, Mapping):
        return dict(wanted)
    return {} if wanted else None


class Parts(NamedTuple):
    """What of a rollout is exported."""

    spans: bool
    #: The options of `list_triplets`; None: no triplets.
    triplets: dict[str, Any] | None
    #: The options of `list_samples`; None: no samples.
    samples: dict[str, Any] | None
    skip_evicted: bool

    def needs_reward(self, rollout: Rollout) -> bool:
        """Tell whether the reward of a rollout has to be asked for, because nothing exported holds it."""
        # Not by the number of spans: an import may not have it.
        is_unknown = rollout.attempt_count > 0 and rollout.reward is None
        return not self.spans and self.triplets is None and is_unknown

    def passes_over(self, error: LightningStoreError) -> bool:
        """Tell whether a rollout is left out for an error: it has gone, or its spans have and that is fine."""
        if error.reason == "ERROR_REASON_ROLLOUT_NOT_FOUND":
            return True
        return self.skip_evicted and error.reason == "ERROR_REASON_SPANS_EVICTED"
