"""Counts the fields of a large message before it is built.

A message of two bytes takes a hundred as an object: 64 MiB of empty rollouts would become 4 GB, and hold the event loop
for seconds. So messages above `pieces.UNCOUNTED_BYTES` are first counted on the wire, in slices. Counting costs as much
as parsing. Most requests are small, and are parsed at once.
"""

from __future__ import annotations

import asyncio
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from lightningstore.service.rules import wire
from lightningstore.service.rules.errors import BatchTooLarge, MalformedMessage
from lightningstore.service.rules.fields import is_packed
from lightningstore.v1.span_pb2 import SpanBatch

#: Bytes of nested messages, and of packed numbers, that are not counted. Parsing them takes 40 ms at most, and the small
#: rollouts of a large batch need not be counted one by one.
UNSEEN_BYTES = 1 << 20
#: Maximum number of fields in a message. 30,000 rollouts with all of their fields fit.
MAX_FIELDS = 500_000
#: Fields that are counted between two yields to other tasks; about 5 ms.
SLICE_FIELDS = 10_000


@cache
def _nested(message: Descriptor) -> dict[int, Descriptor | None]:
    """Return the fields with nested content: messages with their type, and packed numbers with None."""
    found: dict[int, Descriptor | None] = {}
    for field in message.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            found[field.number] = field.message_type
        elif is_packed(field):
            found[field.number] = None
    if message is SpanBatch.DESCRIPTOR:
        del found[SpanBatch.SPANS_FIELD_NUMBER]  # Counted without their fields: spans are large.
    return found


async def check(data: bytes, message: Descriptor) -> None:
    """Reject a message with too many fields. Raises BatchTooLarge, MalformedMessage."""
    unseen = packed = UNSEEN_BYTES
    count = 0
    waiting = [(0, len(data), message)]
    try:
        while waiting:
            at, end, kind = waiting.pop()
            nested = _nested(kind)
            for number, _, start, stop in wire.fields(data, at, end):
                count += 1
                if count % SLICE_FIELDS == 0:
                    if count > MAX_FIELDS:
                        raise BatchTooLarge(_name(kind, number), count, MAX_FIELDS)
                    await asyncio.sleep(0)
                if number not in nested:
                    continue
                inner = nested[number]
                if inner is None:
                    packed -= stop - start
                    if packed < 0:
                        raise BatchTooLarge(_name(kind, number), stop - start, UNSEEN_BYTES)
                elif stop - start <= unseen:
                    unseen -= stop - start
                else:
                    waiting.append((start, stop, inner))
    except ValueError:
        raise MalformedMessage(message.full_name) from None


def _name(message: Descriptor, number: int) -> str:
    field = message.fields_by_number.get(number)
    return field.full_name if field is not None else f"fields of {message.full_name}"
