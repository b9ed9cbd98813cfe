"""Whether and when a call that failed is tried again, without I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from lightningstore.client.errors import LightningStoreError, UnavailableError

FIRST_DELAY = 0.05
LONGEST_DELAY = 2.0

#: Not the generator of the process: an agent that seeds that would make all clients wait alike, and the
#: client must not use up the agent's numbers.
_DICE = random.SystemRandom()


class Retry:
    """Decides, for one call, whether and when it is tried again."""

    def __init__(
        self,
        timeout: float | None,
        *,
        safe: bool = True,
        now: Callable[[], float] = time.monotonic,
        dice: Callable[[], float] = _DICE.random,
    ) -> None:
        """Take the seconds until the deadline (None: no limit) and whether a repeat is harmless."""
        self._timeout = timeout
        self._safe = safe
        self._now = now
        self._dice = dice
        self._began = now()
        self._delay = FIRST_DELAY
        self._works = False

    @property
    def _deadline(self) -> float | None:
        return None if self._timeout is None else self._began + self._timeout

    def heard(self) -> None:
        """Begin anew with the next failure: until then all is well, for however long."""
        self._works = True

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least a millisecond; None without one."""
        deadline = self._deadline
        return None if deadline is None else max(deadline - self._now(), 0.001)

    def delay_after(self, error: LightningStoreError) -> float | None:
        """Return the seconds to wait before the next try; None to give up.

        UNAVAILABLE leaves open whether the call had its effect, so only what is harmless to repeat is
        repeated. An error with a retry delay says that it had none.
        """
        if isinstance(error, UnavailableError):
            if not self._safe and error.retry_delay is None:
                return None
        elif error.retry_delay is None:
            return None
        if self._works:
            self._began, self._delay, self._works = self._now(), FIRST_DELAY, False
        # Between a half and the whole: enough to spread many clients, and never near to zero.
        delay = self._delay * (0.5 + 0.5 * self._dice())
        self._delay = min(self._delay * 2, LONGEST_DELAY)
        if error.retry_delay is not None:
            delay = max(delay, error.retry_delay * (1 + 0.2 * self._dice()))
        deadline = self._deadline
        return None if deadline is not None and self._now() + delay >= deadline else delay
