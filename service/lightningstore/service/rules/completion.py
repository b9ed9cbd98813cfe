"""A finish, as it is told to those who wait."""

from __future__ import annotations

from lightningstore.service.rules.shown import Shown
from lightningstore.v1.rollout_pb2 import Rollout


class Completion:
    """A rollout that finished, as it is told to waiters: serialised once, if anybody waits."""

    __slots__ = ("_wire", "number", "rollout_id", "shown", "size")

    def __init__(self, shown: Shown) -> None:
        self.number = shown.rollout.completion_number
        self.rollout_id = shown.rollout.rollout_id
        self.shown = shown
        #: Bytes that it takes in a message, rounded up.
        self.size = shown.size()
        self._wire: bytes | None = None

    def wire(self, limit: int) -> bytes:
        """Return the rollout serialised, without payloads where they pass the limit."""
        if self._wire is None:
            rollout, input_json, attempt = self.shown
            if self.size > limit:
                bare = Rollout()
                self.shown.compose_bare(bare)
                self._wire = bare.SerializeToString()
            else:
                whole = Rollout(input_json=input_json, latest_attempt=attempt)
                self._wire = rollout.SerializeToString() + whole.SerializeToString()
        return self._wire
