"""Whether and when a failed call is retried, without I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from lightningstore.client.errors import LightningStoreError, UnavailableError

#: Seconds before the first retry, and the maximum; each delay doubles the one before.
FIRST_DELAY = 0.05
MAX_DELAY = 2.0

#: Not the generator of the process: an agent that seeds it would give all clients the same delays, and the client must
#: not consume the agent's numbers.
_RANDOM = random.SystemRandom()


class Retry:
    """Decides, for one call, whether and when it is retried."""

    def __init__(
        self,
        timeout: float | None,
        *,
        safe: bool = True,
        now: Callable[[], float] = time.monotonic,
        jitter: Callable[[], float] = _RANDOM.random,
    ) -> None:
        """Start the time of a call. `timeout`: seconds until its deadline; `safe`: whether a retry is safe."""
        self._timeout = timeout
        self._safe = safe
        self._now = now
        self._jitter = jitter
        self._began = now()
        self._delay = FIRST_DELAY
        self._works = False

    @property
    def _deadline(self) -> float | None:
        return None if self._timeout is None else self._began + self._timeout

    def heard(self) -> None:
        """Note a success. The deadline then starts with the next failure."""
        self._works = True

    def remaining(self) -> float | None:
        """Return the seconds until the deadline, at least a millisecond. None: no deadline."""
        deadline = self._deadline
        return None if deadline is None else max(deadline - self._now(), 0.001)

    def delay_after(self, error: LightningStoreError) -> float | None:
        """Return the seconds before the next retry. None: do not retry.

        After UNAVAILABLE the call may have taken effect, so it is retried only if that is safe. After an error with a
        retry delay it has had no effect.
        """
        if isinstance(error, UnavailableError):
            if not self._safe and error.retry_delay is None:
                return None
        elif error.retry_delay is None:
            return None
        if self._works:
            self._began, self._delay, self._works = self._now(), FIRST_DELAY, False
        # Between half of the delay and all of it: this spreads many clients, and is never near zero.
        delay = self._delay * (0.5 + 0.5 * self._jitter())
        self._delay = min(self._delay * 2, MAX_DELAY)
        if error.retry_delay is not None:
            delay = max(delay, error.retry_delay * (1 + 0.2 * self._jitter()))
        deadline = self._deadline
        return None if deadline is not None and self._now() + delay >= deadline else delay
