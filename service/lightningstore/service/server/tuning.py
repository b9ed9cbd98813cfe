"""Settings of the process that make a busy server faster; docs/performance.md has the measurements."""

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
    """Exclude all present objects from garbage collection, and make collections rare.

    Not too rare: a finished rollout that leaves the cache is a reference cycle, and most of the garbage.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 4, 4)
