"""Token ids of the calls of a trace, held within a limit between the steps that need them."""

from __future__ import annotations

from typing import NamedTuple

from lightningstore.service.samples.reading import Ids


class _Entry(NamedTuple):
    #: The call before, if the prompt begins with all of its token ids, which are not in `prompt` then.
    before: int | None
    prompt: bytes
    response: bytes


class HeldIds:
    """Token ids by call. Of a call that continues the one added before, only what is new is held.

    A conversation of many turns takes the bytes of its last turn, and not those of all turns together.
    """

    def __init__(self, limit: int) -> None:
        """`limit`: maximum number of bytes to hold; calls beyond it are not held."""
        self._left = limit
        self._entries: dict[int, _Entry] = {}
        self._last: tuple[int, bytes] | None = None

    def add(self, key: int, ids: Ids) -> None:
        """Hold the token ids of a call if there is room."""
        before, prompt = None, ids.prompt
        if self._last is not None and prompt.startswith(self._last[1]):
            before = self._last[0]
            prompt = prompt[len(self._last[1]) :]
        self._last = key, ids.prompt + ids.response
        size = len(prompt) + len(ids.response)
        if size <= self._left:
            self._left -= size
            self._entries[key] = _Entry(before, prompt, ids.response)

    def get(self, key: int) -> Ids | None:
        """Return the token ids of a call, None if they are not held. Calls in order cost the least."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        beginning: list[bytes] = []
        before = entry.before
        while before is not None:
            if self._last is not None and self._last[0] == before:
                beginning.append(self._last[1])
                break
            earlier = self._entries.get(before)
            if earlier is None:
                return None
            beginning += (earlier.response, earlier.prompt)
            before = earlier.before
        beginning.reverse()
        ids = Ids(b"".join((*beginning, entry.prompt)), entry.response)
        self._last = key, ids.prompt + ids.response
        return ids
