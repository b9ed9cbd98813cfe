"""Folds calls into rows by their token ids: which call continues which.

A call is added with its token ids as protobuf packs them. Packed numbers begin with other packed numbers exactly if the
token ids do, so no number is looked at. What is kept of a call is the number of its tokens, a checksum and a digest:
the memory does not grow with the token ids, and the work grows with them linearly.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from lightningstore.service.triplets.tokens import count

_DIGEST_BYTES = 16


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
    digest: bytes
    #: The call that it continues.
    parent: FoldedCall | None = None
    #: Whether it continues several calls with the same tokens, and is therefore in no row.
    is_ambiguous: bool = False

    @property
    def rank(self) -> tuple[int, int, bytes, bytes]:
        """Decides which of the calls that continue one call continues its row: tokens alone, except for equal ones."""
        return self.count, self.prompt_count, self.digest, self.where[1]


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
        #: By size of the packed token ids and checksum.
        self._sums: set[tuple[int, int]] = set()
        self._by_digest: dict[bytes, list[FoldedCall]] = {}
        self._sizes: set[int] = set()
        self._lengths: list[int] = []

    def add(self, key: int, where: tuple[int, bytes], prompt: bytes, response: bytes) -> None:
        """Add a call. `where`: its sequence id and span id. Neither of the packed token ids is empty."""
        digest = blake2b(prompt, digest_size=_DIGEST_BYTES)
        digest.update(response)
        prompt_count = count(prompt)
        total = prompt_count + count(response)
        call = FoldedCall(key, where, prompt_count, total, digest.digest())
        size = len(prompt) + len(response)
        self._calls[key] = call
        self._sums.add((size, zlib.crc32(response, zlib.crc32(prompt))))
        self._by_digest.setdefault(call.digest, []).append(call)
        self._sizes.add(size)

    def unplaced(self) -> list[int]:
        """Return the keys of all calls, to be placed. From now on none is added."""
        self._lengths = sorted(self._sizes)
        return list(self._calls)

    def place(self, key: int, prompt: bytes) -> None:
        """Find the call that a call continues. `prompt`: as it was added."""
        for size in self._beginnings(prompt):
            digest = blake2b(memoryview(prompt)[:size], digest_size=_DIGEST_BYTES).digest()
            if found := self._by_digest.get(digest):
                call = self._calls[key]
                call.is_ambiguous = len(found) > 1
                call.parent = found[0]
                return

    def _beginnings(self, prompt: bytes) -> Iterator[int]:
        """Yield the sizes of beginnings of a prompt that may be all token ids of a call, the longest first."""
        view = memoryview(prompt)
        most = bisect_right(self._lengths, len(prompt))
        if most:
            longest = self._lengths[most - 1]
            if (longest, zlib.crc32(view[:longest])) in self._sums:
                yield longest
        found = []
        checksum = at = 0
        for size in self._lengths[: max(0, most - 1)]:
            checksum = zlib.crc32(view[at:size], checksum)
            at = size
            if (size, checksum) in self._sums:
                found.append(size)
        yield from reversed(found)

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
