"""The hint that no server is there, for a client that has not had an answer yet.

Calls to a server that is away are retried until their deadline, so that programs can start in any order. A wrong
address would therefore look like a call that hangs. Two seconds after the first call of a channel, a warning
names the address; the error that ends such a call names it too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import grpc
from lightningstore.client.connection import protocol_hint
from lightningstore.client.errors import LightningStoreError, UnavailableError

logger = logging.getLogger("lightningstore.client")

#: Seconds without an answer after which the first call of a channel logs a warning.
FIRST_ANSWER = 2.0
#: What gRPC's texts for a connection that was never made have in common, in lower case.
_UNREACHED = ("failed to connect", "resolving", "resolution", "handshake")


class Contact:
    """Whether the server of one channel has answered a call."""

    def __init__(self, address: str) -> None:
        #: Whether an answer of any kind has arrived. Set it with the first one.
        self.made = False
        self._address = address
        self._cancel: Callable[[], object] | None = None

    @property
    def is_timed(self) -> bool:
        """Whether the time to the warning runs, or has run."""
        return self._cancel is not None

    def time_with(self, cancel: Callable[[], object]) -> None:
        """Note that `report` will be called after FIRST_ANSWER seconds, and how to cancel that."""
        self._cancel = cancel

    def heard(self) -> None:
        """Note that the server has answered."""
        self.made = True
        self.close()

    def close(self) -> None:
        """Cancel the warning."""
        if self._cancel is not None:
            self._cancel()

    def report(self, state: grpc.ChannelConnectivity) -> None:
        """Log the warning, unless the server has answered or the channel is connected.

        Args:
            state: The state of the channel now. A first call may take long on a server that is there.
        """
        if not self.made and state is not grpc.ChannelConnectivity.READY:
            logger.warning(
                "no server has answered at %s for %g s: is `lightningstore serve` running there? "
                "Calls are retried until their deadline",
                self._address,
                FIRST_ANSWER,
            )

    def explain(self, error: LightningStoreError) -> LightningStoreError:
        """Return the error of a call, with the hint if no connection was made."""
        if self.made or not isinstance(error, UnavailableError):
            return error
        if hint := protocol_hint(self._address, error.message):
            error.message = f"{hint}. gRPC: {error.message}"
        elif any(text in error.message.lower() for text in _UNREACHED):
            error.message = (
                f"no server answers at {self._address}: is `lightningstore serve` running there? "
                f"gRPC: {error.message}"
            )
            error.args = (error.message,)
        return error
