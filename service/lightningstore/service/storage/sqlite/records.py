"""Records from the columns of their rows."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

from lightningstore.service.rules.rows import AttemptRow, LoadedRollout, RolloutRow, SpanRow
from lightningstore.service.storage.sqlite.commits import ZLIB
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout


def parsed(row: Sequence[Any], attempts: Iterable[Sequence[Any]]) -> LoadedRollout:
    """Return a rollout from its columns. Raises DecodeError or ValueError if it is damaged."""
    key, rollout_id, position, available_ns, record, input_json, input_bytes = row
    if input_bytes is None:
        raise ValueError("its input is missing")
    rollout = Rollout.FromString(record)
    if rollout.rollout_id != rollout_id:
        raise ValueError("its record is of another rollout")
    return LoadedRollout(
        RolloutRow(key, rollout, position, available_ns),
        input_json,
        [AttemptRow(own, key, Attempt.FromString(data), last) for own, last, data in attempts],
        0 if input_json else input_bytes,
    )


def parsed_spans(rollout_key: int, columns: Sequence[Any]) -> SpanRow:
    """Return a batch of spans from its columns, without its span ids."""
    key, attempt_key, first, last, count, contiguous, encoding, data = columns
    plain = zlib.decompress(data) if encoding == ZLIB else data
    return SpanRow(key, rollout_key, attempt_key, first, last, count, b"", plain, bool(contiguous))
