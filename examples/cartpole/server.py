"""A server with a new data file, for the examples."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run `lightningstore serve` with a new file; yield its address."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("lightningstore")), "serve", "--port", "0"]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)  # noqa: S603
        try:
            first_line = process.stdout.readline() if process.stdout else ""
            yield first_line.split(" on ")[1].split(",")[0]
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
