"""Long work on the event loop, in slices."""

from __future__ import annotations

import asyncio
from time import perf_counter

#: Work that takes longer than this lets others have the loop.
SLICE_SECONDS = 0.005


class Slices:
    """Measures one piece of long work."""

    def __init__(self) -> None:
        """Begin the first slice."""
        self._began = perf_counter()

    async def pause(self) -> None:
        """Let others have the loop if this slice has lasted long enough."""
        if perf_counter() - self._began > SLICE_SECONDS:
            await asyncio.sleep(0)
            self._began = perf_counter()
