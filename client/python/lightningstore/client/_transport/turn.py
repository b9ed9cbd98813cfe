"""How long the server has kept an upload waiting."""

from __future__ import annotations

import time

from lightningstore.client.errors import DeadlineExceededError


class Turn:
    """Whose turn it is in an upload: the caller's, to provide a request, or the server's, to accept it or to answer.

    Args:
        limit: Maximum seconds of a turn of the server. None: no limit.
    """

    def __init__(self, limit: float | None) -> None:
        self._limit = limit
        self._since: float | None = None

    def of_server(self) -> None:
        """Begin a turn of the server."""
        self._since = time.monotonic()

    def of_caller(self) -> None:
        """Begin a turn of the caller, which has no limit."""
        self._since = None

    def left(self) -> float | None:
        """Return the seconds for which the upload may go on without a change of turn.

        Returns:
            The seconds, 0 or less if the server has stalled. None: no limit.
        """
        if self._limit is None or self._since is None:
            return self._limit
        return self._since + self._limit - time.monotonic()

    @property
    def error(self) -> DeadlineExceededError:
        """The error of an upload whose server has stalled."""
        return DeadlineExceededError(f"the server has accepted nothing for {self._limit:g} s")
