"""The record of a finish for waits and watches."""

from __future__ import annotations

from lightningstore.service.rules.shown import Shown
from lightningstore.v1.rollout_pb2 import Rollout


class Completion:
    """A rollout that finished, for waiters. It is serialised once, if there are waiters."""

    __slots__ = ("_wire", "number", "rollout_id", "shown", "size")

    def __init__(self, shown: Shown) -> None:
        self.number = shown.rollout.completion_number
        self.rollout_id = shown.rollout.rollout_id
        self.shown = shown
        #: Size in a message in bytes, rounded up.
        self.size = shown.size()
        self._wire: bytes | None = None

    def wire(self, limit: int) -> bytes:
        """Return the serialised rollout, without payloads if they exceed `limit` bytes."""
        if self._wire is None:
            rollout, input_json, attempt, *_ = self.shown
            if self.shown.lacks_input or self.size > limit:
                bare = Rollout()
                self.shown.compose_bare(bare)
                self._wire = bare.SerializeToString()
            else:
                whole = Rollout(input_json=input_json, latest_attempt=attempt)
                self._wire = rollout.SerializeToString() + whole.SerializeToString()
        return self._wire
