# Generated from _async/server.py by make_blocking.py. Edit that file, then run `make blocking`.
"""The server itself, in the blocking client: statistics and properties."""

from __future__ import annotations

from lightningstore.client._calls import traces as calls
from lightningstore.client._sync.caller import Caller
from lightningstore.client.values import ServerInfo, Statistics


class ServerCalls(Caller):
    """The calls about the server itself."""

    def get_statistics(self) -> Statistics:
        """Get the numbers of rollouts, attempts, workers and spans, and the sizes of queue and data file.

        Returns:
            The statistics at this moment.
        """
        return self._send(calls.get_statistics())

    def get_server_info(self) -> ServerInfo:
        """Get the server's version, store id, back end, durability and limits.

        Returns:
            The properties of the server.
        """
        return self._send(calls.get_server_info())
