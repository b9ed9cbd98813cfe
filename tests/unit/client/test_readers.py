"""Parquet files of rollouts in the libraries that people load them with. Without such a library its test is skipped."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from lightningstore.client import AttemptTriplets, ExportedRollout, Rollout, Triplet
from lightningstore.client._datasets.parquet import SCHEMA
from lightningstore.client.datasets import DatasetWriter
from lightningstore.v1.rollout_pb2 import Rollout as Record
from lightningstore.v1.span_pb2 import SpanBatch
from lightningstore.v1.triplet_pb2 import AttemptTriplets as Answer
from lightningstore.v1.triplet_pb2 import Triplet as Message

from tests.libraries import library

REWARDS = [{"name": "primary", "value": 0.5}, {"name": "style", "value": 1.0}]


def exported() -> ExportedRollout:
    record = Record(rollout_id="ro-1", latest_attempt_id="at-1", input_json=b'"hi"', status=4)
    record.attempt_count = 1
    record.start_time.FromNanoseconds(1_600_000_000_000_000_001)
    reward = {"value": 0.5, "dimensions": REWARDS, "sequence_id": 2}
    message = Message(
        prompt={"token_ids": [1, 2], "content_json": b'[{"role":"user"}]', "tools_json": b"[]"},
        response={"token_ids": [3], "content_json": b"[]", "logprobs": [-0.5]},
        reward=reward,
    )
    triplets = AttemptTriplets("ro-1", "at-1")
    triplets.add(Answer(unmatched_rewards=[reward]))
    triplets.append(Triplet(message, "ro-1", "at-1"))
    batch = SpanBatch(rollout_id="ro-1", attempt_id="at-1")
    return ExportedRollout(Rollout(record), [], [batch], [triplets])


def types_of(kind: Any) -> Iterator[Any]:
    yield kind
    for at in range(kind.num_fields):
        yield from types_of(kind.field(at).type)


def test_no_column_is_a_map() -> None:
    kinds = [kind for field in SCHEMA for kind in types_of(field.type)]
    assert not any(pa.types.is_map(kind) for kind in kinds)


def by_datasets(path: Path) -> Any:
    loaded = library("datasets").Dataset.from_parquet(
        str(path), cache_dir=str(path.parent / "cache")
    )
    return loaded[0]


def by_pandas(path: Path) -> Any:
    return library("pandas").read_parquet(path).to_dict("records")[0]


def by_polars(path: Path) -> Any:
    return library("polars").read_parquet(path).to_dicts()[0]


def by_duckdb(path: Path) -> Any:
    table = library("duckdb").sql(f"SELECT * FROM read_parquet('{path}')")
    (row,) = table.fetchall()
    return dict(zip(table.columns, row, strict=True))


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("read", [by_datasets, by_pandas, by_polars, by_duckdb])
def test_a_library_loads_triplets_with_their_rewards(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "a.parquet"
    with DatasetWriter(path) as writer:
        writer.write(exported())
    row = read(path)
    assert row["rollout_id"] == "ro-1"
    (triplet,) = list(row["triplets"])
    assert list(triplet["prompt_token_ids"]) == [1, 2]
    assert list(triplet["logprobs"]) == [-0.5]
    assert [dict(dimension) for dimension in triplet["rewards"]] == REWARDS
    (unmatched,) = list(row["unmatched_rewards"])
    assert [dict(dimension) for dimension in unmatched["dimensions"]] == REWARDS
