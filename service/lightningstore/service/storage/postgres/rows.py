"""Records from rows of the database."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import asyncpg
from google.protobuf.message import DecodeError
from lightningstore.service.rules.errors import DataDamaged
from lightningstore.service.rules.rows import AttemptRow, LoadedRollout, RolloutRow, SpanRow
from lightningstore.service.storage.postgres.commits import decoded_spans
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout

logger = logging.getLogger(__name__)

#: Damaged records that are remembered. Further ones are neither logged nor counted.
MOST_RECORDS = 10_000


class Damage:
    """The damaged records of a namespace that were found so far."""

    def __init__(self) -> None:
        self._records: set[str] = set()

    @property
    def count(self) -> int:
        """Number of distinct ones."""
        return len(self._records)

    def skip(self, record: str, cause: object) -> None:
        """Record that one was left out of an answer."""
        if record not in self._records and len(self._records) < MOST_RECORDS:
            self._records.add(record)
            logger.error(
                "%s is damaged (%s): it is left out of lists, watches and exports", record, cause
            )


def loaded_rollout(row: asyncpg.Record) -> LoadedRollout:
    """Return a rollout from a row of `loaded`. Raises DataDamaged."""
    key, name, position, available_ns, record, input_json, input_bytes, *attempts = row[:-1]
    rollout_id = name.decode()
    try:
        if input_bytes is None:
            raise ValueError("its input is missing")
        rollout = Rollout.FromString(record)
        if rollout.rollout_id != rollout_id:
            raise ValueError("its record is of another rollout")
        return LoadedRollout(
            RolloutRow(key, rollout, position, available_ns),
            input_json,
            [
                AttemptRow(own, key, Attempt.FromString(data), last)
                for own, last, data in zip(*(column or () for column in attempts), strict=True)
            ],
            0 if input_json else input_bytes,
        )
    except (DecodeError, ValueError) as error:
        raise DataDamaged(error, rollout_id) from error


def span_row(rollout_key: int, row: Sequence[Any]) -> SpanRow:
    """Return a batch of spans without its span ids. Raises zstandard.ZstdError."""
    key, attempt_key, first, last, count, contiguous, encoding, data = row
    plain = decoded_spans(encoding, data)
    return SpanRow(key, rollout_key, attempt_key, first, last, count, b"", plain, contiguous)
