"""Communicates with a driver; see README.md."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

_LOG_SHOWN = 2000
_END_SECONDS = 5


class DriverError(Exception):
    """A driver broke the protocol, or ended."""


class Unsupported(Exception):
    """A driver's language has nothing for an op."""


class Driver(Protocol):
    """What carries out commands."""

    def send(self, op: str, **parameters: Any) -> int:
        """Send a command; return its id."""

    def answer(self, number: int, key: Sequence[str], until: float) -> dict[str, Any]:
        """Return the answer to a command that has one of these keys. Raises DriverError."""

    def close(self) -> None:
        """End it."""


class ProcessDriver:
    """A driver in a process of its own."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        self._stderr = log.open("w")
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            encoding="utf-8",
            bufsize=1,
        )
        self._changed = threading.Condition()
        self._answers: dict[int, list[dict[str, Any]]] = {}
        self._fault = ""
        self._last = 0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        fault = "ended"
        for line in self._process.stdout:
            try:
                found = json.loads(line)
                with self._changed:
                    self._answers[found["id"]].append(found)
                    self._changed.notify_all()
            except (ValueError, KeyError, TypeError):
                fault = f"wrote an invalid answer: {line[:200]!r}"
                break
        with self._changed:
            self._fault = fault
            self._changed.notify_all()

    def send(self, op: str, **parameters: Any) -> int:
        """Send a command; return its id. Raises DriverError."""
        self._last += 1
        with self._changed:
            self._answers[self._last] = []
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"id": self._last, "op": op, **parameters}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise DriverError(f"the driver ended: {self._tail()}") from None
        return self._last

    def answer(self, number: int, key: Sequence[str], until: float) -> dict[str, Any]:
        """Return the answer to a command that has one of these keys.

        Raises DriverError if none comes by that time of the monotonic clock; Unsupported.
        """
        with self._changed:
            while True:
                for answer in self._answers[number]:
                    if "unsupported" in answer:
                        raise Unsupported(str(answer["unsupported"]))
                    if any(word in answer for word in key):
                        return answer
                left = until - time.monotonic()
                if self._fault:
                    raise DriverError(f"the driver {self._fault}: {self._tail()}")
                if left <= 0:
                    raise DriverError(f"no answer with {' or '.join(key)} in time: {self._tail()}")
                self._changed.wait(left)

    def _tail(self) -> str:
        return self._log.read_text(errors="replace")[-_LOG_SHOWN:].strip() or "nothing on stderr"

    def close(self) -> None:
        """End it, gently first. Raises DriverError if the end of stdin does not end it well."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            code = self._process.wait(_END_SECONDS)
            if code:
                raise DriverError(f"the driver ended with status {code}: {self._tail()}")
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise DriverError("the driver does not end at the end of stdin") from None
        finally:
            self._reader.join(_END_SECONDS)
            self._stderr.close()
            assert self._process.stdout is not None
            self._process.stdout.close()
