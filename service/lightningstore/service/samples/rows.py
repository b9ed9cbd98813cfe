"""A row as a serialised Sample. Arrays of numbers are built as they are on the wire, without a message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

from lightningstore.service.rules import wire
from lightningstore.service.samples.folding import FoldedCall, Row
from lightningstore.service.samples.reading import Answer
from lightningstore.service.triplets import endings
from lightningstore.service.triplets.trace import Call
from lightningstore.service.triplets.warnings import Warnings
from lightningstore.v1.sample_pb2 import Sample, SampleSegment

_TOKEN_IDS = Sample.TOKEN_IDS_FIELD_NUMBER
_MASK = Sample.MASK_FIELD_NUMBER
_LOGPROBS = Sample.LOGPROBS_FIELD_NUMBER
#: Largest number of 32 bits.
_MOST = 3.4028234663852886e38


class About(NamedTuple):
    """What the samples of an attempt have in common."""

    reward: float | None
    scores: Sequence[tuple[str, float]]
    publish_number: int


def sample_of(
    index: int,
    row: Row,
    token_ids: bytes,
    calls: Sequence[Call],
    answers: Sequence[Answer],
    about: About,
    warnings: Warnings,
) -> bytes:
    """Return a serialised Sample. `token_ids`: those of the row. `calls` and `answers`: those of the row's calls."""
    last = answers[-1]
    segments = [
        _segment(folded, call, answer, about)
        for folded, call, answer in zip(row.calls, calls, answers, strict=True)
    ]
    sample = Sample(
        index=index,
        segments=segments,
        prompt_token_count=row.calls[0].prompt_count,
        reward=about.reward,
        scores=dict(about.scores),
        truncated=endings.is_limit(last.finish_reason),
        messages_json=last.messages_json,
        tools_json=last.tools_json,
        image_urls=last.image_urls,
    )
    mask = [b"\1" * (call.count - call.prompt_count) for call in row.calls]
    arrays = [wire.field(_TOKEN_IDS, token_ids), wire.field(_MASK, _spread(row, mask, 1))]
    if numbers := _checked(row, answers, warnings):
        arrays.append(wire.field(_LOGPROBS, _spread(row, numbers, 4)))
    return b"".join((sample.SerializeToString(), *arrays))


def _segment(folded: FoldedCall, call: Call, answer: Answer, about: About) -> SampleSegment:
    node, by = call.node, call.rewarded_by
    return SampleSegment(
        first_token=folded.prompt_count,
        end_token=folded.count,
        span_id=node.span_id.hex(),
        sequence_id=node.sequence_id,
        model=answer.model,
        publish_number=about.publish_number,
        agent_name=call.agent,
        finish_reason=answer.finish_reason,
        reward=by.reward[0].value if by is not None and by.reward else None,
    )


def _checked(row: Row, answers: Sequence[Answer], warnings: Warnings) -> list[bytes]:
    """Return the log-probabilities of each call as an array; nothing unless every token has one."""
    arrays = []
    for call, answer in zip(row.calls, answers, strict=True):
        numbers, sampled = answer.logprobs, call.count - call.prompt_count
        if len(numbers) == sampled:
            arrays.append(_floats(numbers))
        elif numbers:
            warnings.add(
                call.where, "", f"{len(numbers)} log-probabilities for {sampled} tokens; not used"
            )
    return arrays if len(arrays) == len(row.calls) else []


def _floats(numbers: Sequence[float]) -> bytes:
    """Return numbers as an array of 32 bits each, little-endian. Larger ones become the largest."""
    try:
        return struct.pack(f"<{len(numbers)}f", *numbers)
    except OverflowError:
        return struct.pack(f"<{len(numbers)}f", *(max(-_MOST, min(_MOST, n)) for n in numbers))


def _spread(row: Row, parts: Sequence[bytes], size: int) -> bytes:
    """Return the values of sampled tokens with zeros between them. `size`: of one value, in bytes."""
    spread: list[bytes] = []
    at = 0
    for call, part in zip(row.calls, parts, strict=True):
        spread += (bytes(size * (call.prompt_count - at)), part)
        at = call.count
    return b"".join(spread)
