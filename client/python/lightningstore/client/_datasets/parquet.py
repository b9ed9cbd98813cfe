"""Parquet, made of lines of JSON: columns with types for people, and all that an import needs.

`batches` has the spans as the contract's messages and is what is read back; `spans` shows them as columns.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.client._datasets import otlp_json, rows
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client._values.any_value import from_any_value
from lightningstore.client.values import Rollout
from lightningstore.v1.span_pb2 import SpanBatch

try:
    import pyarrow as pa
    from pyarrow import parquet
except ImportError as error:
    raise ImportError("Parquet needs pyarrow: pip install 'lightningstore[parquet]'") from error

#: Bytes of JSON that make a row group: what is held at a time, unless one rollout has more.
GROUP_BYTES = 8 << 20

_TEXT, _TIME = pa.string(), pa.timestamp("ns", tz="UTC")
# Not a map: Hugging Face's datasets cannot load one.
_DIMENSIONS = pa.list_(pa.struct({"name": _TEXT, "value": pa.float64()}))
_ATTEMPT = pa.struct(
    {
        "attempt_id": _TEXT,
        "sequence_number": pa.int32(),
        "status": _TEXT,
        "worker_id": _TEXT,
        "resources_id": _TEXT,
        "resources_version": pa.int32(),
        "publish_number": pa.int64(),
        "span_count": pa.int64(),
        "start_time": _TIME,
        "end_time": _TIME,
        "last_heartbeat_time": _TIME,
        "failure": pa.struct({"type": _TEXT, "message": _TEXT, "retryable": pa.bool_()}),
        "reward": pa.float64(),
        "scores": _DIMENSIONS,
        "reward_source": _TEXT,
        "span_reward": pa.struct(
            {
                "value": pa.float64(),
                "sequence_id": pa.int64(),
                "span_id": _TEXT,
                "start_time_unix_nano": pa.uint64(),
            }
        ),
        "metadata": _TEXT,
    }
)
_TRIPLET = pa.struct(
    {
        "attempt_id": _TEXT,
        "sequence_id": pa.int64(),
        "span_id": _TEXT,
        "agent_name": _TEXT,
        "response_id": _TEXT,
        "reward": pa.float64(),
        "rewards": _DIMENSIONS,
        "prompt_token_ids": pa.list_(pa.int32()),
        "response_token_ids": pa.list_(pa.int32()),
        "prompt_token_count": pa.int32(),
        "response_token_count": pa.int32(),
        "logprobs": pa.list_(pa.float64()),
        "prompt": _TEXT,
        "response": _TEXT,
        "tools": _TEXT,
        "image_urls": pa.list_(_TEXT),
        "logprobs_content": _TEXT,
        "request_metadata": _TEXT,
        "response_metadata": _TEXT,
    }
)
_REWARD = pa.struct(
    {
        "attempt_id": _TEXT,
        "value": pa.float64(),
        "dimensions": _DIMENSIONS,
        "span_id": _TEXT,
        "sequence_id": pa.int64(),
    }
)
_SPAN = pa.struct(
    {
        "attempt_id": _TEXT,
        "sequence_id": pa.int64(),
        "name": _TEXT,
        "trace_id": _TEXT,
        "span_id": _TEXT,
        "parent_span_id": _TEXT,
        "start_time_unix_nano": pa.uint64(),
        "end_time_unix_nano": pa.uint64(),
        "status_code": pa.int8(),
        "status_message": _TEXT,
        "attributes": _TEXT,
    }
)
SCHEMA = pa.schema(
    {
        "rollout_id": _TEXT,
        "status": _TEXT,
        "reward": pa.float64(),
        "mode": _TEXT,
        "priority": pa.int32(),
        "group_id": _TEXT,
        "resources_id": _TEXT,
        "queue": _TEXT,
        "labels": _TEXT,
        "start_time": _TIME,
        "end_time": _TIME,
        "attempt_count": pa.int32(),
        "latest_attempt_id": _TEXT,
        "config": _TEXT,
        "metadata": _TEXT,
        "input": _TEXT,
        "attempts": pa.list_(_ATTEMPT),
        "triplets": pa.list_(_TRIPLET),
        "unmatched_rewards": pa.list_(_REWARD),
        "triplet_warning_count": pa.int32(),
        "spans": pa.list_(_SPAN),
        "batches": pa.list_(pa.binary()),
    }
)
#: What an import does not need.
_SHOWN_ONLY = ("reward", "triplets", "unmatched_rewards", "triplet_warning_count", "spans")
#: What files of earlier versions do not have.
_ADDED = ("queue", "labels")
_READ = [name for name in SCHEMA.names if name not in _SHOWN_ONLY]
_TRIPLET_TEXTS = (
    "prompt",
    "response",
    "tools",
    "logprobs_content",
    "request_metadata",
    "response_metadata",
)


def convert(lines: Iterable[bytes], file: Any) -> None:
    """Write lines of JSON as Parquet. Raises ValueError."""
    with parquet.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for line in lines:
            group.append(_columns(rows.row_of(line)))
            size += len(line)
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, SCHEMA))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, SCHEMA))


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    columns = dict(row)
    for name in ("start_time", "end_time"):
        columns[name] = _nanoseconds(row[name])
    if isinstance(row["mode"], int):
        columns["mode"] = str(row["mode"])
    columns["status"] = str(row["status"])
    columns["config"] = text(row["config"])
    if "labels" in row:
        columns["labels"] = text(row["labels"])
    columns["attempts"] = [_attempt(attempt) for attempt in rows.attempts_of(row["attempts"])]
    if "triplets" in row:
        columns["triplets"] = list(map(_triplet, json.loads(row["triplets"])))
        columns["unmatched_rewards"] = [
            {**reward, "dimensions": dimensions(reward["dimensions"])}
            for reward in row["unmatched_rewards"]
        ]
    if "spans" in row:
        batches = [otlp_json.batch_from_json(told, row["rollout_id"]) for told in row["spans"]]
        columns["batches"] = [batch.SerializeToString(deterministic=True) for batch in batches]
        columns["spans"] = [span for batch in batches for span in _spans(batch)]
    return columns


def _nanoseconds(text: str | None) -> int | None:
    if text is None:
        return None
    time = Timestamp()
    time.FromJsonString(text)
    return time.ToNanoseconds()


def text(value: Any) -> str:
    """Return a value as JSON text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _attempt(attempt: dict[str, Any]) -> dict[str, Any]:
    return {
        **attempt,
        "status": str(attempt["status"]),
        # A partial file of an earlier release may lack some.
        **{name: attempt.get(name) for name in rows.ADDED},
        "scores": dimensions(attempt.get("scores") or {}),
        **{name: _nanoseconds(attempt[name]) for name in rows.TIMES},
    }


def _triplet(told: dict[str, Any]) -> dict[str, Any]:
    return {
        **told,
        # A partial file of an earlier release may lack some.
        **{name: None if told.get(name) is None else text(told[name]) for name in _TRIPLET_TEXTS},
        "rewards": dimensions(told["rewards"]),
    }


def dimensions(values: dict[str, float]) -> list[dict[str, Any]]:
    """Return numbers by name as a list."""
    return [{"name": name, "value": value} for name, value in values.items()]


def _spans(batch: SpanBatch) -> Iterator[dict[str, Any]]:
    for span, sequence_id in zip(batch.spans, batch.sequence_ids, strict=True):
        attributes = {pair.key: from_any_value(pair.value) for pair in span.attributes}
        yield {
            "attempt_id": batch.attempt_id,
            "sequence_id": sequence_id,
            "name": span.name,
            "trace_id": span.trace_id.hex(),
            "span_id": span.span_id.hex(),
            "parent_span_id": span.parent_span_id.hex(),
            "start_time_unix_nano": span.start_time_unix_nano,
            "end_time_unix_nano": span.end_time_unix_nano,
            "status_code": span.status.code,
            "status_message": span.status.message,
            "attributes": json.dumps(attributes, ensure_ascii=False, default=_HEX),
        }


_HEX: Callable[[bytes], str] = bytes.hex


def read(path: str | os.PathLike[str]) -> Iterator[ExportedRollout]:
    """Iterate over the rollouts of a file.

    Raises ValueError for a file that is none of ours, and with its number for a row that is no rollout.
    """
    try:
        with parquet.ParquetFile(path) as file:
            _check(file.schema_arrow)
            for number, row in enumerate(_rows_of(file), 1):
                try:
                    rollout = _exported(row)
                except ValueError as error:
                    raise ValueError(f"row {number}: {error}") from None
                yield rollout
    except pa.ArrowException as error:
        raise ValueError(str(error)) from None


def _check(found: Any) -> None:
    """Raise ValueError if the columns of a file are not those that an import reads."""
    missing = set(SCHEMA.names) - set(found.names) - set(_ADDED)
    if missing:
        raise ValueError(f"no exported rollouts: no column {', '.join(sorted(missing))}")
    for name in _known(found):
        kind, wanted = found.field(name).type, SCHEMA.field(name).type
        if name == "attempts":
            wanted = _as_in(kind, _ATTEMPT)
        if _form(kind) != _form(wanted):
            raise ValueError(f"column {name} must have the type {wanted}, not {kind}")


def _known(found: Any) -> list[str]:
    """Return the columns that an import reads of a file."""
    return [name for name in _READ if name in found.names or name not in _ADDED]


def _as_in(found: Any, attempt: Any) -> Any:
    """Return the type of the attempts of a file, which may be of an earlier version and lack some parts."""
    inner = getattr(found, "value_type", None)
    names = {f.name for f in inner} if inner is not None and pa.types.is_struct(inner) else set()
    return pa.list_(pa.struct([f for f in attempt if f.name in names or f.name not in rows.ADDED]))


def _form(kind: Any) -> str:
    """Return a type as text, without what other writers of Parquet have their own words for."""
    text = str(kind).replace("large_", "").replace(" not null", "")
    return text.replace("<element: ", "<item: ")


def _rows_of(file: Any) -> Iterator[dict[str, Any]]:
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, columns=_known(file.schema_arrow))
        for batch in table.to_batches(max_chunksize=64):
            yield from _records(batch)


def _records(batch: Any) -> Iterator[dict[str, Any]]:
    """Yield rows; times as numbers of nanoseconds, which datetimes of Python's cannot hold."""
    times = [n for n, column in enumerate(batch.schema) if column.type == _TIME]
    for n in times:
        batch = batch.set_column(n, batch.schema.names[n], batch.column(n).cast(pa.int64()))
    at = batch.schema.get_field_index("attempts")
    attempts = batch.column(at)
    batch = batch.set_column(at, "attempts", attempts.cast(_as_in(attempts.type, _WITH_NUMBERS)))
    yield from batch.to_pylist()


_WITH_NUMBERS = pa.struct([(f.name, pa.int64() if f.type == _TIME else f.type) for f in _ATTEMPT])


def _exported(row: dict[str, Any]) -> ExportedRollout:
    for name in ("rollout_id", "status", "input", "config", "attempts"):
        if row[name] is None:
            raise ValueError(f"{name}: it is null, but every rollout has one")
    for name in ("start_time", "end_time"):
        row[name] = _time_text(row[name])
    for name in ("config", "labels"):
        if row.get(name) is not None:
            try:
                row[name] = json.loads(row[name])
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{name} must be JSON: {error}") from None
    rollout = Rollout(rows.rollout_from_json(row))
    attempts = []
    for attempt in row["attempts"]:
        if attempt is None:
            raise ValueError("attempts: one is null")
        attempt |= {name: _time_text(attempt[name]) for name in rows.TIMES}
        attempt["scores"] = {score["name"]: score["value"] for score in attempt.get("scores") or ()}
        attempts.append(rows.attempt_from_json(rollout.rollout_id, attempt))
    batches = None if row["batches"] is None else list(map(_batch, row["batches"]))
    return ExportedRollout(rollout, attempts, batches)


def _batch(data: bytes | None) -> SpanBatch:
    try:
        return SpanBatch.FromString(data)  # type: ignore[arg-type]
    except (TypeError, DecodeError):
        raise ValueError("batches must be serialised SpanBatch messages") from None


def _time_text(nanoseconds: int | None) -> str | None:
    if nanoseconds is None:
        return None
    time = Timestamp()
    time.FromNanoseconds(nanoseconds)
    return time.ToJsonString()
