"""One connection to the database: used in order, and made again when it is lost.

Queries run in tasks of their own. A caller that is cancelled leaves its query alone, because a connection on which a query
was abandoned cannot be used until the database has answered.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

import asyncpg
from lightningstore.service.rules.errors import DataDamaged, ReadFailed, StorageFailed

logger = logging.getLogger(__name__)

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
#: What runs on a connection. The number is that of earlier tries, which may have taken effect.
Work = Callable[[Connection, int], Awaitable[T]]

#: Failures of a connection, or of a database that is not ready: the next try may succeed.
LOST = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    # A standby that is being promoted, or was not.
    asyncpg.ReadOnlySQLTransactionError,
)
#: Content that cannot be read, so that trying again does not help.
DAMAGED = (asyncpg.DataCorruptedError, asyncpg.IndexCorruptedError)
#: Seconds after which a query is given up and sent again on another connection, unless told otherwise.
TRY_SECONDS = 10.0
CONNECT_SECONDS = 3.0
#: Seconds between two tries to connect: the first is doubled until it is the second.
FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5


def boot_seconds() -> float:
    """Return seconds of the clock that goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def in_seconds(seconds: float) -> Callable[[], float]:
    """Return a time for `Link.run`."""
    until = boot_seconds() + seconds
    return lambda: until


class Link:
    """A connection. `run` uses it; nothing connects before the first use."""

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], try_seconds: float = TRY_SECONDS
    ) -> None:
        """Take what connects, and the seconds after which a try is given up: each try has twice as many."""
        self._connect = connect
        self._try_seconds = try_seconds
        self._connection: Connection | None = None
        #: Number of connections made so far.
        self.made = 0
        self._order = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def load(self) -> int:
        """Number of callers that use it or wait for it."""
        return len(self._tasks)

    async def run(self, work: Work[T], until: Callable[[], float]) -> T:
        """Run `work` with the connection, again on another one when that is lost.

        Args:
            work: The queries. Run again, they must have no other effect than run once.
            until: Returns the time up to which lost connections are replaced, in seconds of CLOCK_BOOTTIME. It may
                rise while the work is running.

        Raises:
            StorageFailed: The time has come, or the link is closed meanwhile.
            asyncpg.PostgresError: The database refused the work.
        """
        task = asyncio.create_task(self._run(work, until), name="postgres")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise StorageFailed("the connection was closed") from None
            raise

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # otherwise it is logged if the caller is gone

    async def _run(self, work: Work[T], until: Callable[[], float]) -> T:
        is_queued = self._order.locked()
        async with self._order:
            if is_queued and boot_seconds() >= until():
                # The database did not answer those before. Each more try would keep the next ones waiting longer.
                raise StorageFailed("the database does not answer")
            seconds, pause, tries = self._try_seconds, FIRST_PAUSE, 0
            while True:
                try:
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._connect()
                        self.made += 1
                    return await _within(seconds, self._connection, work, tries)
                except asyncpg.DataError:
                    raise  # an InterfaceError, but about a value
                except LOST as error:
                    self._drop()
                    if boot_seconds() >= until():
                        raise StorageFailed(described(error)) from error
                    if isinstance(error, TimeoutError):
                        seconds *= 2
                tries += 1
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()

    async def close(self) -> None:
        """End what is running, and the connection. The next use makes another one."""
        tasks = list(self._tasks)
        if tasks:
            self._drop()  # a cancelled transaction would wait for the database
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*LOST):
                await connection.close(timeout=CONNECT_SECONDS)


async def _within(seconds: float, connection: Connection, work: Work[T], tries: int) -> T:
    """Run work that ends with its connection if it takes longer than that. Raises TimeoutError.

    Cancelling it instead would wait for a database that may be gone: asyncpg asks it to cancel the query, and rolls
    a transaction back.
    """
    is_late = False

    def end() -> None:
        nonlocal is_late
        is_late = True
        connection.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, end)
    try:
        return await work(connection, tries)
    except LOST:
        if is_late:
            raise TimeoutError(f"the database has not answered for {seconds:g} s") from None
        raise
    finally:
        timer.cancel()


class Links:
    """A few connections for queries that need no order."""

    def __init__(self, connect: Callable[[], Awaitable[Connection]], count: int) -> None:
        self.links = [Link(connect) for _ in range(count)]

    async def fetch(
        self, text: str, values: tuple[Any, ...], until: Callable[[], float]
    ) -> list[Any]:
        """Return the rows of a query. Raises ReadFailed, DataDamaged, StorageFailed."""
        link = min(self.links, key=lambda link: link.load)  # the first of the idle ones
        try:
            return await link.run(lambda connection, _: connection.fetch(text, *values), until)
        except DAMAGED as error:
            raise DataDamaged(described(error)) from error
        except asyncpg.PostgresError as error:
            raise ReadFailed(described(error)) from error

    async def close(self) -> None:
        """Close all of them."""
        await asyncio.gather(*(link.close() for link in self.links))


def described(error: BaseException) -> str:
    """Return an error's text, or its name if it has none."""
    return str(error) or type(error).__name__
