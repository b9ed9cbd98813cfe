"""Where a namespace is served, if several servers share them."""

from __future__ import annotations

from typing import Protocol


class Placement(Protocol):
    """Knows which server serves a namespace."""

    def elsewhere(self, name: str) -> str:
        """Return the address of the server that calls of a namespace go to, "" for this one.

        Takes microseconds. The namespace need not exist. The answer may be out of date: that server then rejects the
        call with NotOwner.
        """

    async def refresh(self) -> None:
        """Look at all namespaces that the servers share, so that a list of them is complete. Raises StorageFailed."""

    async def discover(self, name: str) -> None:
        """Look for a namespace that this server does not know: another may have created it. Raises StorageFailed."""
