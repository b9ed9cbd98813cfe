"""The limits of a store, which callers may not exceed. Each is an option of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightningstore.service.rules.errors import FieldInvalid

MIB = 1 << 20
DEFAULT_PAGE_SIZE = 100
#: Size in bytes that messages of a streamed answer are filled to.
CHUNK_BYTES = MIB
#: Seconds that a large request waits for memory before it is rejected. Half of the 10 s that exporters wait by default:
#: Node's retries no rejected call, and Go's first pause is up to 7.5 s, whatever RetryInfo says.
HOLD_SECONDS = 5.0
#: Highest value of the option for messages: protobuf reads no message of 2 GiB.
HIGHEST_MESSAGE_BYTES = 2047 * MIB
#: Highest value of the options for items: messages with more have too many fields (rpc/density.py).
HIGHEST_ITEMS = 30_000


@dataclass(frozen=True)
class Limits:
    """The limits of one store, and their defaults."""

    #: Maximum size of a message in bytes, in and out.
    message_bytes: int = 64 * MIB
    #: Maximum size of a rollout's input in bytes.
    input_bytes: int = 16 * MIB
    #: Maximum size of a span in bytes.
    span_bytes: int = 4 * MIB
    #: Maximum number of spans in a message.
    message_spans: int = 50_000
    #: Maximum number of items in a call.
    batch_items: int = 10_000
    #: Maximum number of items on a page.
    page_size: int = 1000
    #: Maximum number of rollouts in the queue; 0: unlimited.
    queue_length: int = 0
    #: Number of versions that are kept of each resources id; 0: all.
    resource_versions: int = 10
    #: Maximum number of concurrent streams of a connection.
    connection_streams: int = 100
    #: Maximum number of bytes that wait for the disk.
    pending_bytes: int = 64 * MIB
    #: Maximum number of open streams of the server.
    open_streams: int = 10_000
    #: The memory back end evicts above this number of span bytes, down to `safe_bytes`; 0: never.
    eviction_bytes: int = 0
    safe_bytes: int = 0

    def page_length(self, requested: int) -> int:
        """Return the number of items on a page. Raises FieldInvalid for a negative number."""
        if requested < 0:
            raise FieldInvalid("page_size", f"must not be negative; 0 means {DEFAULT_PAGE_SIZE}")
        return min(requested or DEFAULT_PAGE_SIZE, self.page_size)

    @property
    def inputs_bytes(self) -> int:
        """Maximum sum of the inputs of one EnqueueRollouts, whose answer repeats them with everything else."""
        return max(self.message_bytes - 4 * MIB, self.message_bytes // 8)

    @property
    def kept_inputs_bytes(self) -> int:
        """Bytes of small inputs of queued rollouts that stay in memory; the others are read when claimed."""
        return self.pending_bytes // 2

    @property
    def unread_bytes(self) -> int:
        """Maximum number of bytes that all answers of spans hold while they are being sent."""
        return 8 * self.pending_bytes

    @property
    def answer_bytes(self) -> int:
        """Size in bytes at which the answer to a claim or a list is full."""
        return self.message_bytes // 2

    @property
    def metadata_bytes(self) -> int:
        """Maximum size of the metadata of a rollout or an attempt, and of the stats of a worker.

        A rollout with the largest input, its metadata and its latest attempt's fits into one message.
        """
        return self.message_bytes // 4


class Retention(NamedTuple):
    """What is kept: finished rollouts up to an age in seconds, data up to a size in bytes. None: unlimited."""

    finished_seconds: float | None = None
    data_bytes: int | None = None

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is removed."""
        return self == (None, None)
