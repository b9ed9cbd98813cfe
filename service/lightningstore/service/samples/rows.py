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
from lightningstore.v1.sample_pb2 import Sample

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
    sample = Sample(
        index=index,
        prompt_token_count=row.calls[0].prompt_count,
        reward=about.reward,
        truncated=endings.is_limit(last.finish_reason),
        messages_json=last.messages_json,
        tools_json=last.tools_json,
    )
    sample.scores.update(about.scores)
    sample.image_urls.extend(last.image_urls)
    for folded, call, answer in zip(row.calls, calls, answers, strict=True):
        _add_segment(sample, folded, call, answer, about)
    mask = [b"\1" * (call.count - call.prompt_count) for call in row.calls]
    parts = [sample.SerializeToString(), wire.header(_TOKEN_IDS, len(token_ids)), token_ids]
    parts += _spread(_MASK, row, mask, 1)
    if numbers := _checked(row, answers, warnings):
        parts += _spread(_LOGPROBS, row, numbers, 4)
    return b"".join(parts)


def _add_segment(
    sample: Sample, folded: FoldedCall, call: Call, answer: Answer, about: About
) -> None:
    node, by = call.node, call.rewarded_by
    sample.segments.add(
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


def _spread(number: int, row: Row, parts: Sequence[bytes], size: int) -> list[bytes]:
    """Return a field with the values of sampled tokens, and zeros between them. `size`: of one value, in bytes."""
    spread = [wire.header(number, size * row.last.count)]
    at = 0
    for call, part in zip(row.calls, parts, strict=True):
        spread += (bytes(size * (call.prompt_count - at)), part)
        at = call.count
    return spread
