"""A finish, as it is told to those who wait."""

from __future__ import annotations

from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout


class Completion:
    """A rollout that finished, as it is told to waiters: serialised once, if anybody waits."""

    __slots__ = ("_attempt", "_input_json", "_rollout", "_wire", "number", "rollout_id", "size")

    def __init__(self, rollout: Rollout, input_json: bytes, attempt: Attempt | None) -> None:
        """Take the records, which never change, and the input."""
        self.number = rollout.completion_number
        self.rollout_id = rollout.rollout_id
        self.size = len(input_json) + 512
        self._rollout = rollout
        self._input_json = input_json
        self._attempt = attempt
        self._wire: bytes | None = None

    @property
    def wire(self) -> bytes:
        """The rollout with input and latest attempt, serialised."""
        if self._wire is None:
            whole = Rollout(input_json=self._input_json, latest_attempt=self._attempt)
            self._wire = self._rollout.SerializeToString() + whole.SerializeToString()
        return self._wire
