# Generated from _async/server.py by make_blocking.py. Edit that file, then run `make blocking`.
"""The server itself, in the blocking client: statistics and properties."""

from __future__ import annotations

from collections.abc import Mapping

from lightningstore.client._calls import traces as calls
from lightningstore.client._sync.caller import Caller
from lightningstore.client.values import ServerInfo, Statistics


class ServerCalls(Caller):
    """The calls about the server itself."""

    def get_statistics(self, *, labels: Mapping[str, str] | None = None) -> Statistics:
        """Get the numbers of rollouts, attempts, workers and spans, and the sizes of queue and data file.

        Args:
            labels: Also count the rollouts that have all of these labels. The server reads all of them, which takes
                longer than its counters. None: not counted.

        Returns:
            The statistics at this moment.

        Raises:
            InvalidArgumentError: A label is invalid.
            TypeError: `labels` is not a mapping of strings.
        """
        return self._send(calls.get_statistics(labels))

    def get_server_info(self) -> ServerInfo:
        """Get the server's version, store id, back end, durability and limits.

        Returns:
            The properties of the server.
        """
        return self._send(calls.get_server_info())
