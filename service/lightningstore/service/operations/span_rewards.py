"""Rewards in batches of spans, which are bytes: only spans that may hold a reward are parsed."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from lightningstore.service.rules import byte_search, pieces, rewards, wire
from lightningstore.service.triplets import reward_of
from lightningstore.v1.attempt_pb2 import SpanReward
from lightningstore.v1.span_pb2 import IngestSpansRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER
#: What every span with a reward contains: in the key of an attribute, or in the value of an output.
_WORD = b"reward"
#: One of these is in every span with a reward, in its name or in the key of an attribute.
_MARKS = (
    b"agentlightning.reward",
    b"agentlightning.annotation",
    b"agentops.task.output",
    b"agentops.entity.output",
)


def last_reward(data: bytes, numbers: Sequence[int]) -> SpanReward | None:
    """Return the last reward in a batch, None if it has none.

    Args:
        data: A serialised IngestSpansRequest.
        numbers: The sequence id of each of its spans.
    """
    if not byte_search.holds(data, _WORD) or not any(
        byte_search.holds(data, mark) for mark in _MARKS
    ):
        return None  # the usual case
    last: SpanReward | None = None
    for index, span in _marked(data):
        value = reward_of(span)
        if value is not None:
            found = SpanReward(
                value=value,
                sequence_id=numbers[index],
                span_id=span.span_id.hex(),
                start_time_unix_nano=span.start_time_unix_nano,
            )
            last = rewards.later(last, found)
    return last


def _marked(data: bytes) -> Iterator[tuple[int, Span]]:
    """Yield the spans that may hold a reward, with their indexes."""
    start = wire.frame(data, _BATCH)
    batch = data[start:]
    cut = pieces.cut(batch, len(batch), len(batch))
    at = batch.find(_WORD)
    while at >= 0:
        index = bisect_right(cut.begins, at) - 1
        if index < 0 or at >= cut.ends[index]:  # in the resource or the scope
            following = bisect_left(cut.begins, at)
            if following == len(cut.begins):
                return
            at = batch.find(_WORD, cut.begins[following])
            continue
        begin, end = cut.begins[index], cut.ends[index]
        if any(batch.find(mark, begin, end) >= 0 for mark in _MARKS):
            _, _, first, last = next(wire.fields(batch, begin, end))
            yield index, Span.FromString(batch[first:last])
        at = batch.find(_WORD, end)
