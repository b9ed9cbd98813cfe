"""Folds calls into rows by their token ids: which call continues which.

Token ids are cut into blocks. The hash of a block covers all blocks before it, so that one hash stands for a whole
beginning. A call is found by the hash of its last whole block and by what follows that. Work and memory grow linearly
with the token ids, whatever the calls have in common: of a call are kept the hashes of its blocks, 8 bytes for 512.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from lightningstore.service.triplets.tokens import TOKEN_BYTES, Tokens, count

#: Bytes of token ids in a block.
BLOCK_BYTES = 128 * TOKEN_BYTES


@dataclass(slots=True, eq=False)
class FoldedCall:
    """A call in a fold."""

    #: What the caller knows it by.
    key: int
    #: Its sequence id and span id.
    where: tuple[int, bytes]
    #: Number of tokens of its prompt, and of prompt and response.
    prompt_count: int
    count: int
    checksum: int
    #: The hash of each whole block of prompt and response, with all before it.
    blocks: array[int] = field(default_factory=lambda: array("q"))
    #: The call that it continues.
    parent: FoldedCall | None = None
    #: Whether it continues several calls with the same tokens, and is therefore in no row.
    is_ambiguous: bool = False

    @property
    def rank(self) -> tuple[int, int, int, bytes]:
        """Decides which of the calls that continue one call continues its row: tokens alone, except for equal ones."""
        return self.count, self.prompt_count, self.checksum, self.where[1]


class Row(NamedTuple):
    """Calls of which each continues the one before. Its token ids are those of the last one."""

    calls: list[FoldedCall]

    @property
    def last(self) -> FoldedCall:
        """The call whose prompt and response are the whole row."""
        return self.calls[-1]


class Fold:
    """Calls of one attempt. First all are added, then those of `unplaced` placed; then there are rows."""

    def __init__(self) -> None:
        self._calls: dict[int, FoldedCall] = {}
        #: By size of the token ids and hash.
        self._by_hash: dict[tuple[int, int], list[FoldedCall]] = {}
        #: By the hash of the last whole block: the sizes of calls, the largest first once all calls are added.
        self._sizes: dict[int, list[int]] = {}
        #: The token ids that were added last, and their blocks.
        self._last = b"", array("q")

    def add(self, key: int, where: tuple[int, bytes], prompt: Tokens, response: Tokens) -> None:
        """Add a call. `where`: its sequence id and span id. Neither prompt nor response is empty."""
        whole = prompt + response
        checksum = zlib.crc32(response, zlib.crc32(prompt))
        call = FoldedCall(key, where, count(prompt), count(whole), checksum, self._blocks(whole))
        self._calls[key] = call
        begin = len(call.blocks) * BLOCK_BYTES
        block = call.blocks[-1] if begin else 0
        size = len(whole)
        calls = self._by_hash.setdefault((size, hash((block, whole[begin:]))), [])
        calls.append(call)
        if len(calls) == 1:
            self._sizes.setdefault(block, []).append(size)

    def _blocks(self, whole: Tokens) -> array[int]:
        """Return the hash of each whole block. Those of a beginning that was added last are known."""
        before, known = self._last
        blocks = known[:] if whole.startswith(before) else array("q")
        block = blocks[-1] if blocks else 0
        for begin in range(len(blocks) * BLOCK_BYTES, len(whole) - BLOCK_BYTES + 1, BLOCK_BYTES):
            block = hash((block, whole[begin : begin + BLOCK_BYTES]))
            blocks.append(block)
        self._last = whole, blocks
        return blocks

    def unplaced(self) -> list[int]:
        """Return the keys of the calls that may continue one, to be placed. From now on none is added."""
        for block, sizes in self._sizes.items():
            self._sizes[block] = sorted(set(sizes), reverse=True)
        return [key for key, call in self._calls.items() if any(self._beginnings(call))]

    def place(self, key: int, prompt: Tokens) -> None:
        """Find the call that a call continues. `prompt`: as it was added."""
        call = self._calls[key]
        for block, begin, sizes in self._beginnings(call):
            for size in sizes:
                if size > len(prompt):
                    continue
                if found := self._by_hash.get((size, hash((block, prompt[begin:size])))):
                    call.is_ambiguous = len(found) > 1
                    call.parent = found[0]
                    return

    def _beginnings(self, call: FoldedCall) -> Iterator[tuple[int, int, list[int]]]:
        """Yield where the prompt of a call may begin with all token ids of a call, the longest beginning first.

        That is the hash of a block, where it ends, and the sizes of the calls of which it is the last whole block.
        """
        blocks = call.blocks
        size = call.prompt_count * TOKEN_BYTES
        for at in range(size // BLOCK_BYTES, -1, -1):
            block = blocks[at - 1] if at else 0
            sizes = self._sizes.get(block)
            if sizes and sizes[-1] <= size:
                yield block, at * BLOCK_BYTES, sizes

    def rows(self) -> tuple[list[Row], list[FoldedCall]]:
        """Return the rows in the order of their first calls, and the calls that are in none."""
        following: dict[int, FoldedCall] = {}
        kept = [call for call in self._calls.values() if not call.is_ambiguous]
        for call in kept:
            if call.parent is not None and not call.parent.is_ambiguous:
                other = following.get(call.parent.key)
                if other is None or call.rank > other.rank:
                    following[call.parent.key] = call
        continued = {call.key for call in following.values()}
        rows = []
        for call in sorted(kept, key=lambda call: call.where):
            if call.key not in continued:
                calls = [call]
                while (after := following.get(calls[-1].key)) is not None:
                    calls.append(after)
                rows.append(Row(calls))
        aside = [call for call in self._calls.values() if call.is_ambiguous]
        return rows, sorted(aside, key=lambda call: call.where)
