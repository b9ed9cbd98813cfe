"""Parquet of samples, made of lines of JSON: one row for each sample, with lists as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa
from lightningstore.client._datasets.parquet import GROUP_BYTES, dimensions, text
from lightningstore.client._datasets.samples import WORDS, Column, Kind
from pyarrow import parquet

_SEGMENT = pa.struct(
    {
        "first_token": pa.int32(),
        "end_token": pa.int32(),
        "span_id": pa.string(),
        "sequence_id": pa.int64(),
        "model": pa.string(),
        "publish_number": pa.int64(),
        "agent_name": pa.string(),
        "finish_reason": pa.string(),
        "reward": pa.float64(),
    }
)
_TYPES = {
    Kind.TEXT: pa.string(),
    Kind.TEXTS: pa.list_(pa.string()),
    Kind.INTEGER: pa.int64(),
    Kind.NUMBER: pa.float64(),
    Kind.FLAG: pa.bool_(),
    Kind.IDS: pa.list_(pa.int32()),
    Kind.BITS: pa.list_(pa.int8()),
    Kind.FLAGS: pa.list_(pa.bool_()),
    Kind.FLOATS: pa.list_(pa.float32()),
    Kind.JSON: pa.string(),
    # Not a map: Hugging Face's datasets cannot load one.
    Kind.SCORES: pa.list_(pa.struct({"name": pa.string(), "value": pa.float64()})),
    Kind.SEGMENTS: pa.list_(_SEGMENT),
}


def convert(lines: Iterable[bytes], file: Any, words: str) -> None:
    """Write lines of JSON as Parquet, with the columns of these words."""
    columns = WORDS[words]
    schema = pa.schema({column.name: _TYPES[column.kind] for column in columns})
    with parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        group: list[dict[str, Any]] = []
        size = 0
        for line in lines:
            row = json.loads(line)
            group.append({column.name: _value(column, row) for column in columns})
            size += len(line)
            if size >= GROUP_BYTES:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group, size = [], 0
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema))


def _value(column: Column, row: dict[str, Any]) -> Any:
    value = row[column.name]
    if column.kind is Kind.JSON:
        return None if value is None else text(value)
    return dimensions(value) if column.kind is Kind.SCORES else value
