"""Samples in files: the words of trainers, JSON lines, and Parquet in the libraries that people load it with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightningstore.client import AttemptSamples
from lightningstore.client.datasets import TRAINERS, SampleWriter, encode_samples, samples_to_json
from lightningstore.v1 import sample_pb2
from pyarrow import parquet

from .test_readers import by_datasets, by_duckdb, by_pandas, by_polars

PART = sample_pb2.AttemptSamples(
    attempt={"rollout_id": "ro-1", "attempt_id": "at-1"},
    group_id="g",
    status="ROLLOUT_STATUS_SUCCEEDED",
    queue_time={"seconds": 1},
    samples=[
        {
            "token_ids": [1, 2, 3, 4, 5],
            "mask": [False, False, True, False, True],
            "logprobs": [0, 0, -0.5, 0, -0.25],
            "segments": [
                {"first_token": 2, "end_token": 3, "publish_number": 7, "finish_reason": "stop"},
                {"first_token": 4, "end_token": 5, "publish_number": 7, "finish_reason": "length"},
            ],
            "prompt_token_count": 2,
            "reward": 1.5,
            "scores": {"style": 0.5},
            "truncated": True,
            "messages_json": b'[{"role":"user","content":"\xc3\xbc"}]',
        },
        {
            "index": 1,
            "token_ids": [6, 7],
            "mask": [False, True],
            "segments": [{"first_token": 1, "end_token": 2}],
            "prompt_token_count": 1,
        },
    ],
    complete=True,
)
ABOUT = {
    "rollout_id": "ro-1",
    "attempt_id": "at-1",
    "index": 0,
    "group_id": "g",
    "status": "succeeded",
    "truncated": True,
    "scores": {"style": 0.5},
    "min_publish_number": 7,
    "max_publish_number": 7,
    "queue_seconds": 1.0,
    "run_seconds": None,
}
IDENTITY = {"rollout_id": "ro-1", "attempt_id": "at-1", "index": 0, "group_id": "g"}
MESSAGES = [{"role": "user", "content": "ü"}]
BITS = [1, 0, 1]
LOGPROBS = [-0.5, 0, -0.25]
#: The first sample in the words of each trainer.
SAID: dict[str, dict[str, Any]] = {
    "trl": {
        "prompt_ids": [1, 2],
        "completion_ids": [3, 4, 5],
        "logprobs": LOGPROBS,
        "env_mask": BITS,
        "reward": 1.5,
        **IDENTITY,
    },
    "verl": {
        "prompt_ids": [1, 2],
        "response_ids": [3, 4, 5],
        "response_mask": BITS,
        "response_logprobs": LOGPROBS,
        "reward_score": 1.5,
        "num_turns": 2,
        "extra_fields": ABOUT,
    },
    "skyrl": {
        "prompt_token_ids": [1, 2],
        "response_ids": [3, 4, 5],
        "rewards": 1.5,
        "loss_masks": BITS,
        "stop_reasons": "length",
        "rollout_logprobs": LOGPROBS,
        "trajectory_ids": {"instance_id": "g", "repetition_id": "ro-1"},
        "is_last_step": False,
    },
    "slime": {
        "index": 0,
        "prompt": MESSAGES,
        "tokens": [1, 2, 3, 4, 5],
        "response_length": 3,
        "reward": 1.5,
        "loss_mask": BITS,
        "rollout_log_probs": LOGPROBS,
        "weight_versions": ["7", "7"],
        "status": "truncated",
        "metadata": ABOUT,
    },
    "prime-rl": {
        "token_ids": [1, 2, 3, 4, 5],
        "mask": [False, False, True, False, True],
        "logprobs": [0, 0, *LOGPROBS],
        "reward": 1.5,
        **IDENTITY,
    },
    "art": {
        "messages_and_choices": MESSAGES,
        "tools": None,
        "reward": 1.5,
        "initial_policy_version": 7,
        "final_policy_version": 7,
        "metrics": {"style": 0.5},
        "metadata": ABOUT,
    },
    "tinker": {
        "model_input": [1, 2, 3, 4],
        "target_tokens": [2, 3, 4, 5],
        "mask": [0, *BITS],
        "logprobs": [0, *LOGPROBS],
        "reward": 1.5,
        **IDENTITY,
    },
}


def attempt() -> AttemptSamples:
    found = AttemptSamples("ro-1", "at-1")
    found.add(PART)
    return found


def test_every_trainer_has_its_words_here() -> None:
    assert set(SAID) == set(TRAINERS)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_row_in_the_words_of_a_trainer(trainer: str) -> None:
    first, second = map(json.loads, encode_samples(attempt(), trainer).splitlines())
    assert first == SAID[trainer]
    assert list(second) == list(first)


def test_a_row_in_our_words_has_everything() -> None:
    first, second = samples_to_json(attempt())
    assert first["token_ids"] == [1, 2, 3, 4, 5]
    assert first["mask"] == [False, False, True, False, True]
    assert [segment["finish_reason"] for segment in first["segments"]] == ["stop", "length"]
    assert (first["messages"], first["scores"]) == (MESSAGES, {"style": 0.5})
    assert (second["index"], second["logprobs"], second["reward"]) == (1, None, None)


@pytest.mark.parametrize("trainer", ["", *TRAINERS])
def test_parquet_has_the_same_columns(tmp_path: Path, trainer: str) -> None:
    with SampleWriter(tmp_path / "a.parquet", trainer=trainer) as writer:
        writer.write(attempt())
    assert writer.count == 2
    first, second = parquet.read_table(tmp_path / "a.parquet").to_pylist()
    for row, line in zip(
        (first, second), encode_samples(attempt(), trainer).splitlines(), strict=True
    ):
        told = json.loads(line)
        assert list(row) == list(told)
        for name, value in told.items():
            if isinstance(value, dict) and name != "scores":
                assert json.loads(row[name]) == value
            elif name not in ("scores", "messages", "prompt", "messages_and_choices"):
                assert row[name] == value
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"]


def test_unknown_words_and_existing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"one of trl, verl.*not 'x'"):
        SampleWriter(tmp_path / "a.jsonl", trainer="x")
    path = tmp_path / "b.jsonl"
    with pytest.raises(RuntimeError), SampleWriter(path) as writer:
        writer.write(attempt())
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with SampleWriter(path) as writer:
        writer.write(attempt())
    with pytest.raises(FileExistsError):
        SampleWriter(path)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("read", [by_datasets, by_pandas, by_polars, by_duckdb])
def test_a_library_loads_samples(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    one = attempt()
    del one[1:]
    with SampleWriter(tmp_path / "a.parquet") as writer:
        writer.write(one)
    row = read(tmp_path / "a.parquet")
    assert list(row["token_ids"]) == [1, 2, 3, 4, 5]
    assert list(row["mask"]) == [False, False, True, False, True]
    assert list(row["logprobs"]) == [0, 0, -0.5, 0, -0.25]
    assert [dict(segment)["end_token"] for segment in row["segments"]] == [3, 5]
    assert [dict(score) for score in row["scores"]] == [{"name": "style", "value": 0.5}]
