"""Ends overdue attempts and lets waiting retries be claimed, on its own, whatever the traffic."""

from __future__ import annotations

import asyncio
import logging

from lightningstore.service.errors import StorageFailed
from lightningstore.service.store import Store

logger = logging.getLogger(__name__)

#: The watchdog looks up at least this often while an attempt may fall silent. Seconds.
TICK = 0.25
#: It looks up as often while nothing can fall silent: what holds the event loop shows all the same. Seconds.
IDLE_TICK = 1.0
#: Waking up this much later than planned means that the server could not hear. Seconds.
STALL = 0.5


async def watch(store: Store) -> None:
    """Expire what is due, until cancelled. Costs what is due, and a look a second while nothing can be."""
    while True:
        store.earlier.clear()
        now = store.clock.monotonic()
        due = [
            deadline
            for deadline in (store.deadlines.next_deadline(), store.delays.next_deadline())
            if deadline is not None
        ]
        # The tick is there to notice stalls, which matter most to those who may fall silent.
        wake = min([*due, now + (TICK if due else IDLE_TICK)])
        await store.clock.wait(store.earlier, wake)
        late = store.clock.monotonic() - max(wake, now)
        store.lag.note(late, store.clock.monotonic())
        if late > STALL and due:
            logger.warning("the server was stalled for %.1f s: nobody's silence counts", late)
            store.deaf_until = store.clock.monotonic()
        if store.committer.failure is not None:
            await store.clock.wait(asyncio.Event(), store.clock.monotonic() + TICK)
            continue
        try:
            await store.expire()
        except StorageFailed:
            continue  # what was read from disk anew has its deadlines again
        except Exception:
            logger.exception("the watchdog stumbled")
