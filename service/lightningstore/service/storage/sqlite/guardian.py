"""Ends a backup that makes no progress: its view of the store keeps the server's log from shrinking.

It runs in its own process and session. A stopped backup (Ctrl-Z, SIGSTOP, a blocked terminal) cannot act itself, and its
view is released only when it exits.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from lightningstore.service.storage.sqlite import file as datafile

#: A backup that makes no progress for PAUSE_SECONDS is ended if the log is larger than LOG_BYTES.
PAUSE_SECONDS = 5.0
LOG_BYTES = 128 << 20


class Alive(Protocol):
    """Report progress: called with the number of copied pages and the total."""

    def __call__(self, done: int, total: int, /) -> None:
        """Note progress."""


@contextlib.contextmanager
def guarded(path: Path, draft: Path) -> Iterator[Alive]:
    """End a backup of the store at `path` to `draft` if it makes no progress while the log is large."""
    command = [sys.executable, "-m", __name__, str(os.getpid()), f"{path}-wal", str(draft)]
    with subprocess.Popen(  # noqa: S603  (this interpreter, and this module)
        command, stdin=subprocess.PIPE, start_new_session=True
    ) as guardian:
        pipe = guardian.stdin
        assert pipe is not None  # noqa: S101

        def alive(done: int, total: int) -> None:
            with contextlib.suppress(OSError, ValueError):
                if done < total:
                    os.write(pipe.fileno(), b".")
                else:
                    pipe.close()  # only the sync of the copy remains, which may take long

        try:
            yield alive
        finally:
            with contextlib.suppress(OSError):
                pipe.close()


def guard(pid: int, log: Path, draft: Path, pause: float = PAUSE_SECONDS) -> int:
    """Read progress reports from stdin until it ends; return the exit code."""
    while True:
        readable, _, _ = select.select([sys.stdin], [], [], pause)
        if readable:
            if not os.read(sys.stdin.fileno(), 4096):
                return 0
        elif _size(log) > LOG_BYTES:
            os.kill(pid, signal.SIGKILL)
            datafile.forget(draft)
            sys.stderr.write(
                f"the backup made no progress for {pause:g} s while the log {log} grew to "
                f"{_size(log) >> 20} MiB, and was ended. Run it again\n"
            )
            return 1


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


if __name__ == "__main__":
    sys.exit(
        guard(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), *map(float, sys.argv[4:]))
    )
