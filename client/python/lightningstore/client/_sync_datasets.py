"""Export and import, of the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from google.protobuf.message import Message
from lightningstore.client._datasets import ExportedRollout, ImportResult, import_messages
from lightningstore.v1.import_pb2 import ImportRolloutsRequest

Item = TypeVar("Item")
T = TypeVar("T")


class DatasetCalls:
    """The calls that carry whole rollouts."""

    def _upload(
        self,
        method: str,
        items: Iterable[Item],
        messages: Callable[[Item], Iterable[Message]],
        shape: Callable[[Any], T],
    ) -> T:
        raise NotImplementedError

    def import_rollouts(
        self, rollouts: Iterable[ExportedRollout | ImportRolloutsRequest]
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
