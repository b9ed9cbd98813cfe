"""Reads the bodies of requests within limits, and makes those of answers: both without holding the event loop."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TypeVar

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from lightningstore.service.engine.budget import Budget
from lightningstore.service.http.server import IDLE_SECONDS, HttpError
from lightningstore.service.rules.errors import FieldInvalid, PayloadTooLarge
from lightningstore.service.rules.limits import HOLD_SECONDS
from lightningstore.service.rules.pieces import UNCOUNTED_BYTES

#: Work on bodies above this size is done in the thread: it takes a millisecond or two.
INLINE_BYTES = 16 * 1024
#: Bytes that zlib makes of one, at most.
MAX_INFLATION = 1032
#: zlib's number for "gzip or zlib, whichever it is".
_ANY_HEADER = 47
_PIECE_BYTES = 8192
#: zlib's number for gzip, and the level that is fastest: answers are for networks, not for disks.
_GZIP, _LEVEL = 31, 1
#: Seconds for which the thread makes parts of one body, before it turns to those of others.
_STEP_SECONDS = 0.01

#: What reading a body raises when the client disconnects, or violates HTTP.
_BROKEN = (ConnectionError, HttpProcessingError, web.RequestPayloadError, web.PayloadAccessError)

T = TypeVar("T")


class Bodies:
    """Parses, makes and compresses large bodies in a thread, one at a time, so that they cannot hold the event loop."""

    def __init__(self, name: str, limit: int, budget: Budget) -> None:
        """Take the name of the thread, the size limit of a body in bytes, and the bytes that all bodies may hold."""
        self._worker = ThreadPoolExecutor(1, name)
        self._limit = limit
        self._budget = budget

    def close(self) -> None:
        """Read no more bodies."""
        self._worker.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def decompressed(self, data: bytes, *, is_compressed: bool) -> AsyncIterator[bytes]:
        """Decompress a body; it counts against the limit of all bodies until the end of the context.

        Raises Busy, PayloadTooLarge, FieldInvalid.
        """
        limit, budget = self._limit, self._budget
        if not is_compressed and len(data) <= UNCOUNTED_BYTES:
            yield data
            return
        held = min(limit, MAX_INFLATION * len(data)) if is_compressed else len(data)
        await budget.take(held, HOLD_SECONDS)
        try:
            if is_compressed:
                data = await self.run(4 * len(data), lambda: decompress(data, limit))
                budget.give(held - len(data))
                held = len(data)
            yield data
        finally:
            budget.give(held)

    async def run(self, size: int, work: Callable[[], T]) -> T:
        """Return the result of work on `size` bytes, which is done in the thread if it is large."""
        if size <= INLINE_BYTES:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._worker, work)

    async def made(self, size: int, parts: Iterator[bytes]) -> list[bytes]:
        """Return the parts of a body, which are made of `size` bytes; large bodies take turns in the thread."""
        found: list[bytes] = []
        while await self.run(size, lambda: _make(parts, found)):
            pass
        return found


def _make(parts: Iterator[bytes], found: list[bytes]) -> bool:
    """Make parts for some time; return whether there may be more."""
    until = perf_counter() + _STEP_SECONDS
    for part in parts:
        if part:
            found.append(part)
        if perf_counter() >= until:
            return True
    return False


async def expect_later(_: web.Request) -> None:
    """Do not ask for the body yet: `read` does, once the token and the headers are good."""


async def read(request: web.Request, limit: int) -> bytes:
    """Return the body as it was sent. Raises PayloadTooLarge, FieldInvalid, HttpError."""
    if (request.content_length or 0) > limit:
        raise PayloadTooLarge("body", request.content_length or 0, limit)
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    parts, size = [], 0

    async def read_parts() -> None:
        nonlocal size
        async for part in request.content.iter_any():
            size += len(part)
            if size > limit:
                raise PayloadTooLarge("body", size, limit)
            parts.append(part)

    try:
        # Not `wait_for`: in Python 3.11 it ignores the call's deadline that passes as the body arrives.
        async with asyncio.timeout(IDLE_SECONDS):
            await read_parts()
    except TimeoutError:
        raise HttpError(
            408, FieldInvalid("body", f"must arrive within {IDLE_SECONDS:g} s")
        ) from None
    except _BROKEN as error:
        raise FieldInvalid("body", f"cannot be read: {type(error).__name__}") from None
    return b"".join(parts)


def decompress(data: bytes, limit: int) -> bytes:
    """Return a body, compressed by gzip or zlib in one member or several, of at most `limit` bytes.

    Raises PayloadTooLarge, FieldInvalid.
    """
    found = bytearray()
    reader = zlib.decompressobj(_ANY_HEADER)
    at = 0
    # In pieces: zlib copies what follows the end of a member, and there may be a member every 20 bytes.
    while at < len(data):
        if reader.eof:
            reader = zlib.decompressobj(_ANY_HEADER)
        part = data[at : at + _PIECE_BYTES]
        try:
            found += reader.decompress(part, limit + 1 - len(found))
        except zlib.error as error:
            raise FieldInvalid(
                "body", f"is not compressed as content-encoding says: {error}"
            ) from None
        if len(found) > limit:
            raise PayloadTooLarge("decompressed body", len(found), limit)
        at += len(part) - len(reader.unused_data)
    if not reader.eof:
        raise FieldInvalid("body", "is incomplete: the compressed data ends early")
    return bytes(found)


def compressed(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a body compressed by gzip. Parts may be empty."""
    writer = zlib.compressobj(_LEVEL, wbits=_GZIP)
    for part in parts:
        yield writer.compress(part)
    yield writer.flush()
