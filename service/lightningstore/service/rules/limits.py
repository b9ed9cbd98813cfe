"""The limits that the store holds its callers to, each an option of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightningstore.service.rules.errors import FieldInvalid

MIB = 1 << 20
DEFAULT_PAGE_SIZE = 100


@dataclass(frozen=True)
class Limits:
    """Defaults are those of SPEC section 7."""

    #: Largest message in bytes, in and out.
    message_bytes: int = 64 * MIB
    #: Largest input of a rollout in bytes.
    input_bytes: int = 16 * MIB
    #: Largest span in bytes.
    span_bytes: int = 4 * MIB
    #: Most spans of one message.
    message_spans: int = 50_000
    #: Most items of one call.
    batch_items: int = 10_000
    #: Most items of one page.
    page_size: int = 1000
    #: Most rollouts in the queue; 0: no limit.
    queue_length: int = 0
    #: Most concurrent streams of one connection.
    connection_streams: int = 100
    #: Most bytes that wait for the disk.
    pending_bytes: int = 64 * MIB
    #: Most open streams of the whole server.
    open_streams: int = 10_000
    #: Span bytes above which the memory back end evicts, and down to which; 0: never.
    eviction_bytes: int = 0
    safe_bytes: int = 0

    def page_length(self, requested: int) -> int:
        """Return how many items a page holds. Raises FieldInvalid for a negative number."""
        if requested < 0:
            raise FieldInvalid("page_size", f"must not be negative; 0 means {DEFAULT_PAGE_SIZE}")
        return min(requested or DEFAULT_PAGE_SIZE, self.page_size)

    @property
    def inputs_bytes(self) -> int:
        """Largest sum of the inputs of one EnqueueRollouts: its answer repeats them, with all the rest."""
        return max(self.message_bytes - 4 * MIB, self.message_bytes // 8)

    @property
    def unread_bytes(self) -> int:
        """Bytes that all answers of spans may hold while they are being read."""
        return 8 * self.pending_bytes

    @property
    def answer_bytes(self) -> int:
        """Bytes at which the answer to a claim or a list is full."""
        return self.message_bytes // 2

    @property
    def metadata_bytes(self) -> int:
        """Largest metadata of a rollout or an attempt, and largest stats of a worker.

        A rollout with the largest input, its metadata and its latest attempt's fits into one message.
        """
        return self.message_bytes // 4


class Retention(NamedTuple):
    """What is kept: finished rollouts by age in seconds, data by size in bytes. None: unlimited."""

    finished_seconds: float | None = None
    data_bytes: int | None = None

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing ever goes."""
        return self == (None, None)
