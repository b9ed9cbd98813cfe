"""What all watches share: where they begin, and how they go on until they are cancelled."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, aclosing
from typing import TypeAlias

from lightningstore.service.engine.engine import Engine
from lightningstore.service.engine.waiters import ALIVE_SECONDS, Waiter
from lightningstore.service.rules.errors import FieldInvalid, StoreError, StoreIdMismatch

#: A serialised message, and the number that it reaches. None: there is nothing to send up to that number.
Part: TypeAlias = tuple[bytes | None, int]
After: TypeAlias = Callable[[int], AsyncGenerator[Part, None]]


async def prepared(engine: Engine, store_id: str) -> None:
    """Check the store of a watch, and wait until what callers have seen is durable. Raises StoreIdMismatch."""
    if store_id and store_id != engine.store_id:
        raise StoreIdMismatch(store_id, engine.store_id)
    await engine.barrier()


def first_number(
    number: int | None, last: int, field: str, beyond: Callable[[int, int], StoreError]
) -> int:
    """Return the number after which a watch begins; None: after the last one.

    Raises FieldInvalid, and `beyond` for a number above the last one.
    """
    if number is None:
        return last
    if number < 0:
        raise FieldInvalid(field, "must not be negative")
    if number > last:
        raise beyond(number, last)
    return number


async def messages(
    engine: Engine,
    watching: AbstractContextManager[Waiter],
    through: int,
    progress: Callable[[int], bytes],
    after: After,
) -> AsyncGenerator[bytes | None, None]:
    """Yield None once the watch is registered, then its messages.

    Args:
        engine: The engine of the store.
        watching: Registers the watch.
        through: The number after which it begins.
        progress: Returns the message that says how far the watch is; sent first, and when nothing else was sent for
            a while.
        after: Reads what comes after a number.
    """
    with watching as waiter:
        yield None
        yield progress(through)
        while True:
            waiter.ready.clear()
            reached = through
            async with aclosing(after(through)) as parts:
                async for part in parts:
                    message, reached = part
                    if message is not None:
                        yield message
            if reached > through:
                through = reached
                continue
            tick = engine.clock.monotonic() + ALIVE_SECONDS
            await waiter.wait(engine.clock, tick)
            if engine.clock.monotonic() >= tick:
                yield progress(through)
