"""Values of many rows as one text, which a database puts together: a value a row would cost three times as much."""

from __future__ import annotations

import asyncio
import sys
from array import array
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec
from lightningstore.service.rules.series import Bucket, SeriesQuery, Summary

#: Values that are unpacked at once: 1 ms.
UNPACKED_AT_ONCE = 20_000
#: Characters of a value in the form in which rewards are sorted.
DIGITS = 16
#: Measures that are whole numbers, with the unit that they are divided by: durations are nanoseconds.
INTEGERS = {"duration": 1e9, "queue_time": 1e9, "attempt_count": 1, "lag": 1}
_SIGN = b"\x80" + bytes(7)
#: First bytes of values that are not negative, in their sortable form.
_POSITIVE = bytes(range(0x80, 0x100))
_decode = msgspec.json.Decoder(list[int]).decode


def rewards(text: str) -> Iterator[Iterable[float]]:
    """Yield the numbers of values in their sortable form, with or without commas between them, some at a time."""
    step = UNPACKED_AT_ONCE * (DIGITS + (text[DIGITS : DIGITS + 1] == ","))
    for start in range(0, len(text), step):
        data = bytes.fromhex(text[start : start + step].replace(",", ""))
        if not data[::8].translate(None, _POSITIVE):
            yield _numbers(data)
        else:  # negative ones have all bits turned around
            words = array("Q")
            words.frombytes(data)
            _to_native(words)
            turned = (w ^ (1 << 63) if w >> 63 else w ^ ((1 << 64) - 1) for w in words)
            words = array("Q", turned)
            numbers = array("d")
            numbers.frombytes(words.tobytes())
            yield numbers


def _numbers(data: bytes) -> array[float]:
    size = len(data)
    mask = int.from_bytes(_SIGN * (size // 8), "big")
    numbers = array("d")
    numbers.frombytes((int.from_bytes(data, "big") ^ mask).to_bytes(size, "big"))
    _to_native(numbers)
    return numbers


def _to_native(found: array[Any]) -> None:
    if sys.byteorder == "little":
        found.byteswap()


def integers(text: str) -> Iterator[Iterable[float]]:
    """Yield whole numbers separated by commas, some at a time."""
    start = 0
    while start < len(text):
        end = text.find(",", start + UNPACKED_AT_ONCE * 8)
        part = text[start : end if end >= 0 else len(text)]
        yield _decode(f"[{part}]")
        start += len(part) + 1


async def summaries(buckets: dict[int, Bucket], unit: float = 1) -> dict[int, Summary]:
    """Return what is known of the values in each bucket, each divided by `unit`, by index; some buckets at a time."""
    found: dict[int, Summary] = {}
    count = 0
    for index, bucket in sorted(buckets.items()):
        found[index] = bucket.summary(unit)
        count += found[index].count
        if count >= UNPACKED_AT_ONCE:
            count = 0
            await asyncio.sleep(0)
    return found


async def add(bucket: Bucket, query: SeriesQuery, text: str) -> None:
    """Add the values of a text to a bucket, some at a time, in the unit in which they are stored."""
    for few in integers(text) if query.measure in INTEGERS else rewards(text):
        bucket.add(few)
        await asyncio.sleep(0)


async def summaries_of(buckets: dict[int, Bucket], query: SeriesQuery) -> dict[int, Summary]:
    """Return what is known of the values of texts in each bucket, by index."""
    return await summaries(buckets, INTEGERS.get(query.measure, 1))
