"""Whole rollouts for export and import, without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from lightningstore.client._datasets.batches import MESSAGE_BYTES, split_batch
from lightningstore.client._values.attempts import Attempt
from lightningstore.client._values.rewards import may_hold, span_reward
from lightningstore.client._values.samples import AttemptSamples
from lightningstore.client._values.spans import Span
from lightningstore.client._values.triplets import AttemptTriplets
from lightningstore.client.values import Rollout
from lightningstore.v1 import import_pb2, span_pb2


class ImportResult(NamedTuple):
    """The result of an import. Everything that is counted is durable.

    Attributes:
        imported_count: Number of rollouts that are new in the store.
        known_count: Number of rollouts that the store had before, with the same content.
        accepted_span_count: Number of stored spans.
        duplicate_span_count: Number of spans that had been stored before.
        conflict_span_count: Number of rejected spans whose span_id the attempt has with other content.
    """

    imported_count: int
    known_count: int
    accepted_span_count: int
    duplicate_span_count: int
    conflict_span_count: int = 0

    @classmethod
    def from_message(cls, message: import_pb2.ImportRolloutsResponse) -> ImportResult:
        """Convert a message of the contract.

        Args:
            message: The message.

        Returns:
            The result.
        """
        return cls(
            message.imported_count,
            message.known_count,
            message.accepted_span_count,
            message.duplicate_span_count,
            message.conflict_span_count,
        )


class ExportedRollout:
    """A finished rollout with its attempts and, if requested, its spans, triplets and samples.

    `export_rollouts` yields these objects, and `import_rollouts` takes them.

    Args:
        rollout: The rollout.
        attempts: All its attempts, by sequence number.
        batches: Its spans, by sequence id. None: not requested.
        triplets: The triplets of each attempt. None: not requested.
        traced_reward: The last reward of the latest attempt, where neither spans nor triplets hold it.
        samples: The samples of each attempt. None: not requested.

    Attributes:
        rollout: The rollout.
        attempts: All its attempts, by sequence number.
        batches: Its spans as messages of the contract, by sequence id. None: not requested.
        triplets: The triplets of each attempt. None: not requested.
        samples: The samples of each attempt. None: not requested.
    """

    def __init__(
        self,
        rollout: Rollout,
        attempts: Sequence[Attempt],
        batches: Sequence[span_pb2.SpanBatch] | None = None,
        triplets: Sequence[AttemptTriplets] | None = None,
        traced_reward: float | None = None,
        samples: Sequence[AttemptSamples] | None = None,
    ) -> None:
        self.rollout = rollout
        self.attempts = list(attempts)
        self.batches = None if batches is None else list(batches)
        self.triplets = None if triplets is None else list(triplets)
        self.samples = None if samples is None else list(samples)
        self._traced_reward = traced_reward

    @property
    def spans(self) -> list[Span]:
        """The spans, by sequence id. Empty if they were not requested."""
        return [
            Span(span, batch, sequence_id)
            for batch in self.batches or ()
            for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=True)
        ]

    @property
    def reward(self) -> float | None:
        """The reward of the latest attempt; if its record has none, the last one in its spans. None: there is none."""
        if self.attempts and self.attempts[-1].reward is not None:
            return self.attempts[-1].reward
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
        if self.triplets is None:
            return self._traced_reward
        rewards: list[tuple[int, float]] = []
        for attempt in self.triplets:
            if attempt.attempt_id == latest:
                matched = (t.message.reward for t in attempt if t.reward is not None)
                rewards += [(reward.sequence_id, reward.value) for reward in matched]
                rewards += [(r.sequence_id, r.value) for r in attempt.unmatched_rewards]
        return max(rewards)[1] if rewards else None

    def __repr__(self) -> str:
        return f"ExportedRollout({self.rollout!r}, {len(self.attempts)} attempts)"

    def messages(self) -> Iterator[import_pb2.ImportRolloutsRequest]:
        """Split the rollout into messages for ImportRollouts.

        Yields:
            One message, or several if the rollout has many spans.
        """
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
    """Return the messages that import a rollout, which may be a message already."""
    return rollout.messages() if isinstance(rollout, ExportedRollout) else [rollout]
