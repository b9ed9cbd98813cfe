"""Rewards in batches of spans, which are bytes: only spans that may hold a reward are parsed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from lightningstore.service.rules import byte_search, rewards, wire
from lightningstore.service.rules.copies import evolve
from lightningstore.service.triplets import reward_of
from lightningstore.v1.attempt_pb2 import SpanReward
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_SPANS = SpanBatch.SPANS_FIELD_NUMBER
#: What every span with a reward contains: in the key of an attribute, or in the value of an output.
_WORD = b"reward"
#: One of these is in every span with a reward, in its name or in the key of an attribute.
_MARKS = (
    b"agentlightning.reward",
    b"agentlightning.annotation",
    b"agentops.task.output",
    b"agentops.entity.output",
)


#: Rewards that were found in a batch, without sequence ids, each with the index of its span.
Found = list[tuple[int, SpanReward]]


def rewards_in(data: bytes, start: int = 0, spans: Sequence[Span] | None = None) -> Found:
    """Return the rewards in a batch.

    Args:
        data: A serialised SpanBatch, or its spans only, from `start` on.
        start: Where it starts.
        spans: The same spans, if they are parsed.
    """
    if not byte_search.holds(data, _WORD) or not any(
        byte_search.holds(data, mark) for mark in _MARKS
    ):
        return []  # the usual case
    found: Found = []
    for index, begin, end in _marked(data, start):
        span = Span.FromString(data[begin:end]) if spans is None else spans[index]
        value = reward_of(span)
        if value is not None:
            reward = SpanReward(
                value=value,
                span_id=span.span_id.hex(),
                start_time_unix_nano=span.start_time_unix_nano,
            )
            found.append((index, reward))
    return found


def last_reward(found: Found, numbers: Sequence[int]) -> SpanReward | None:
    """Return the last reward of a batch, None if it has none.

    Args:
        found: The rewards in the batch.
        numbers: The sequence id of each of its spans.
    """
    if not found:
        return None
    index, last = max(found, key=lambda item: rewards.place(item[1], numbers[item[0]]))
    return evolve(last, sequence_id=numbers[index])


def _marked(data: bytes, first: int) -> Iterator[tuple[int, int, int]]:
    """Yield index, start and end of the spans that may hold a reward."""
    places = [
        (start, end)
        for number, _, start, end in wire.fields(data, first, len(data))
        if number == _SPANS
    ]
    starts = [start for start, _ in places]
    at = data.find(_WORD, first)
    while at >= 0:
        index = bisect_right(starts, at) - 1
        if index < 0 or at >= places[index][1]:  # in the resource or the scope
            if index + 1 == len(places):
                return
            at = data.find(_WORD, starts[index + 1])
            continue
        start, end = places[index]
        if any(data.find(mark, start, end) >= 0 for mark in _MARKS):
            yield index, start, end
        at = data.find(_WORD, end)
