"""Settings of the process that make a busy server faster; docs/performance.md has the measurements."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop
from lightningstore.service.engine.clock import SystemClock
from lightningstore.service.rules.limits import MIB

# glibc's mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

#: The generation of a full collection.
OLDEST = 2
#: Seconds after which a full collection visits everything again.
THAW_SECONDS = 3600


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a program on uvloop. A call costs about a tenth less than on asyncio's own loop."""
    uvloop.run(main)


def keep_freed_memory() -> None:
    """Have malloc keep freed buffers for reuse instead of returning them to the system.

    Span messages have 100 KB and arrive many times a second. Without this, every message faults in its pages again,
    which costs as much as parsing it. A no-op where the C library is not glibc.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, 32 * MIB)
    mallopt(_M_TRIM_THRESHOLD, 128 * MIB)
    mallopt(_M_TOP_PAD, 16 * MIB)


def settle_garbage() -> None:
    """Exclude all present objects from garbage collection, make collections rare, and full ones short.

    A full collection visits every object, 2 ms for a thousand rollouts in memory, and holds the event loop. So what survives
    one is excluded from the next ones. Reference counts still free it; only cycles stay, such as the frames of a call that
    was cut off after a long wait, and a collection of everything once an hour frees these.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 4, 4)
    gc.callbacks.append(Thaw(SystemClock().monotonic))


class Thaw:
    """Called by the garbage collector before and after each collection: excludes what survives a full one, for an hour."""

    def __init__(self, now: Callable[[], float]) -> None:
        """`now` returns the seconds of a clock that never jumps."""
        self._now = now
        self._since = now()

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Freeze what has survived a full collection, or thaw everything before one."""
        if info["generation"] < OLDEST:
            return
        if phase == "stop":
            gc.freeze()
        elif self._now() - self._since >= THAW_SECONDS:
            self._since = self._now()
            gc.unfreeze()
