"""Settings of the process that make a busy server faster. Measured; see docs/performance.md."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Coroutine
from typing import Any

import uvloop
from lightningstore.service.rules.limits import MIB

# glibc's mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a program on uvloop: a call costs about a tenth less than on asyncio's own loop."""
    uvloop.run(main)


def keep_freed_memory() -> None:
    """Have freed buffers used again instead of given back: a span message is 100 KB, many a second.

    Without it every message faults its pages in anew, which costs as much as parsing it. Does nothing
    where the C library is not glibc.
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
    """Take what is here now out of the garbage collector's walks, and have it walk seldom.

    Not too seldom: a finished rollout that leaves the cache is a cycle, and most of what there is to find.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 4, 4)
