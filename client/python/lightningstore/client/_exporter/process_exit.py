"""Flushing at the end of the process."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable


def register(flush: Callable[[], object]) -> Callable[[], object]:
    """Call a function when this process ends, and return the function for `atexit.unregister`.

    A child of multiprocessing ends without the functions of atexit, but with its own finalizers.
    """
    registered: Callable[[], object] = atexit.register(flush)
    # Looked up, not imported: importing multiprocessing takes milliseconds.
    process, util = map(sys.modules.get, ("multiprocessing.process", "multiprocessing.util"))
    if process is not None and util is not None and process.parent_process() is not None:
        util.Finalize(None, flush, exitpriority=10)
    return registered
