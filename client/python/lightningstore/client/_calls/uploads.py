"""The messages of a client stream, from an iterable of the caller, which may be asynchronous in the asyncio client."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import TypeVar

from google.protobuf.message import Message

Item = TypeVar("Item")


def async_is_repeatable(items: Iterable[Item] | AsyncIterable[Item]) -> bool:
    """Tell whether the items can be iterated again. An iterator, which is its own iterator, cannot."""
    if isinstance(items, AsyncIterable):
        return items is not items.__aiter__()
    return is_repeatable(items)


async def async_requests(
    items: Iterable[Item] | AsyncIterable[Item], messages: Callable[[Item], Iterable[Message]]
) -> AsyncIterator[Message]:
    """Yield the messages of each item."""
    if isinstance(items, AsyncIterable):
        async for item in items:
            for message in messages(item):
                yield message
    else:
        for message in requests(items, messages):
            yield message


def is_repeatable(items: Iterable[Item]) -> bool:
    """Tell whether the items can be iterated again. An iterator, which is its own iterator, cannot."""
    return items is not iter(items)


def requests(
    items: Iterable[Item], messages: Callable[[Item], Iterable[Message]]
) -> Iterator[Message]:
    """Yield the messages of each item."""
    for item in items:
        yield from messages(item)
