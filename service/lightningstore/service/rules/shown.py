"""Rollouts in answers: their sizes, and the omission of payloads that do not fit."""

from __future__ import annotations

from typing import NamedTuple

from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout

#: Tags and lengths of the parts of a rollout, and the fields that a change adds to its record.
FRAME_BYTES = 64


class Shown(NamedTuple):
    """A rollout with its input and attempt.

    Its records never change, so the message can be composed later.
    """

    rollout: Rollout
    #: Empty where the input is stored and not in memory: see `lacks_input`.
    input_json: bytes
    attempt: Attempt | None
    #: Key of the rollout, and bytes of its input.
    key: int = 0
    input_bytes: int = 0

    @property
    def lacks_input(self) -> bool:
        """Whether the input has to be loaded: without it the rollout is composed without payloads."""
        return not self.input_json and self.input_bytes > 0

    def size(self) -> int:
        """Return its size in an answer in bytes, rounded up."""
        size = self.input_bytes + self.rollout.ByteSize() + FRAME_BYTES
        return size + self.attempt.ByteSize() if self.attempt is not None else size

    def bare_size(self) -> int:
        """Return its size without payloads."""
        size = self.size() - self.input_bytes - len(self.rollout.metadata_json)
        if self.attempt is not None:
            size -= len(self.attempt.metadata_json) + self.attempt.failure.ByteSize()
        return size

    def compose(self, into: Rollout) -> None:
        """Fill a message of an answer."""
        if self.lacks_input:
            self.compose_bare(into)
            return
        into.CopyFrom(self.rollout)
        into.input_json = self.input_json
        if self.attempt is not None:
            into.latest_attempt.CopyFrom(self.attempt)

    def compose_bare(self, into: Rollout) -> None:
        """Fill a message of an answer without payloads."""
        into.CopyFrom(self.rollout)
        into.ClearField("metadata_json")
        into.payloads_omitted = True
        if self.attempt is not None:
            into.latest_attempt.CopyFrom(self.attempt)
            into.latest_attempt.ClearField("metadata_json")
            into.latest_attempt.ClearField("failure")

    def compose_within(self, into: Rollout, limit: int) -> None:
        """Fill a message of an answer, without payloads if they exceed `limit` bytes."""
        if self.lacks_input or self.size() > limit:
            self.compose_bare(into)
        else:
            self.compose(into)
