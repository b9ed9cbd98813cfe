"""How much the open stores of a process keep in memory together of what their back ends hold, too. Pure."""

from __future__ import annotations


class Share:
    """An amount, in bytes or items, that all stores together may keep."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Part:
    """What one store keeps of a shared amount."""

    __slots__ = ("_share", "used")

    def __init__(self, share: Share) -> None:
        self._share = share
        self.used = 0

    def add(self, amount: int) -> None:
        """Keep more; a negative amount is kept no longer."""
        self.used += amount
        self._share.used += amount

    def has_room(self, amount: int) -> bool:
        """Return whether the stores may keep that much more."""
        return self._share.used + amount <= self._share.limit

    @property
    def exceeds(self) -> bool:
        """Whether the stores keep more than they may. Each drops what it has when it adds something."""
        return self._share.used > self._share.limit

    def release(self) -> None:
        """Keep nothing any more."""
        self.add(-self.used)


class Caches:
    """What stores keep of records that are in their back ends, too."""

    def __init__(self, *, inputs: int, rollouts: int, span_ids: int, completions: int) -> None:
        """Set the limits, in bytes except for `span_ids`."""
        self.inputs = Share(inputs)
        self.rollouts = Share(rollouts)
        self.span_ids = Share(span_ids)
        self.completions = Share(completions)
