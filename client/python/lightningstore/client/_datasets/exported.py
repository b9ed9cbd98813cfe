"""Rollouts on their way out of a store and into one, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lightningstore.client._datasets.batches import MESSAGE_BYTES, split_batch
from lightningstore.client._values.attempts import Attempt
from lightningstore.client._values.rewards import may_hold, span_reward
from lightningstore.client._values.spans import Span
from lightningstore.client._values.triplets import AttemptTriplets
from lightningstore.client.values import Rollout
from lightningstore.v1 import import_pb2, span_pb2


class ImportResult(NamedTuple):
    """What became of imported rollouts. All that is counted here is durable."""

    #: Rollouts that are new in the store.
    imported_count: int
    #: Rollouts that it had before, with the same content.
    known_count: int
    #: Spans stored.
    accepted_span_count: int
    #: Spans that were stored before.
    duplicate_span_count: int
    #: Spans refused, because the attempt has another span with this span_id.
    conflict_span_count: int = 0

    @classmethod
    def from_message(cls, message: import_pb2.ImportRolloutsResponse) -> ImportResult:
        """Read it from a message of the contract."""
        return cls(
            message.imported_count,
            message.known_count,
            message.accepted_span_count,
            message.duplicate_span_count,
            message.conflict_span_count,
        )


class ExportedRollout:
    """A finished rollout with its attempts and, where they were asked for, its spans and triplets.

    What `export_rollouts` yields and `import_rollouts` takes.
    """

    def __init__(
        self,
        rollout: Rollout,
        attempts: Sequence[Attempt],
        batches: Sequence[span_pb2.SpanBatch] | None = None,
        triplets: Sequence[AttemptTriplets] | None = None,
    ) -> None:
        """Take the parts; None for spans or triplets that were not asked for."""
        #: The rollout.
        self.rollout = rollout
        #: All its attempts, in the order of their sequence numbers.
        self.attempts = list(attempts)
        #: Its spans as messages of the contract, by sequence id; None if they were not asked for.
        self.batches = None if batches is None else list(batches)
        #: The triplets of each attempt; None if they were not asked for.
        self.triplets = None if triplets is None else list(triplets)

    @property
    def spans(self) -> list[Span]:
        """Its spans, in the order of their sequence ids; none if they were not asked for."""
        return [
            Span(span, batch, sequence_id)
            for batch in self.batches or ()
            for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=True)
        ]

    @property
    def reward(self) -> float | None:
        """The last reward that was traced in the latest attempt; None if there is none, or no trace here."""
        latest = self.rollout.latest_attempt_id
        if self.batches is not None:
            for batch in reversed(self.batches):
                if batch.attempt_id == latest:
                    for span, number in zip(
                        reversed(batch.spans), reversed(batch.sequence_ids), strict=True
                    ):
                        found = span_reward(Span(span, batch, number)) if may_hold(span) else None
                        if found is not None:
                            return found
            return None
        rewards: list[tuple[int, float]] = []
        for attempt in self.triplets or ():
            if attempt.attempt_id == latest:
                matched = (t.message.reward for t in attempt if t.reward is not None)
                rewards += [(reward.sequence_id, reward.value) for reward in matched]
                rewards += [(r.sequence_id, r.value) for r in attempt.unmatched_rewards]
        return max(rewards)[1] if rewards else None

    def __repr__(self) -> str:
        return f"ExportedRollout({self.rollout!r}, {len(self.attempts)} attempts)"

    def messages(self) -> Iterator[import_pb2.ImportRolloutsRequest]:
        """Yield the messages that import it: one, or several where it has many spans."""
        message, size = self._message(), 0
        for batch in self.batches or ():
            for part in split_batch(batch):
                added = part.ByteSize()
                if size and size + added > MESSAGE_BYTES:
                    yield message
                    message, size = self._message(), 0
                message.batches.append(part)
                size += added
        yield message

    def _message(self) -> import_pb2.ImportRolloutsRequest:
        return import_pb2.ImportRolloutsRequest(
            rollout=self.rollout.message, attempts=[attempt.message for attempt in self.attempts]
        )


def import_messages(
    rollout: ExportedRollout | import_pb2.ImportRolloutsRequest,
) -> Iterable[import_pb2.ImportRolloutsRequest]:
    """Return the messages that import a rollout, which may be one already."""
    return rollout.messages() if isinstance(rollout, ExportedRollout) else [rollout]
