"""Samples as rows with names, in this project's words and in those of trainers. Nothing is computed but what they name.

A row is the same sample whatever its words are: `WORDS` says which column holds which part of it. The words are those of
the trainers' sources in August 2026.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import Any, NamedTuple

from lightningstore.client._values.samples import AttemptSamples, Sample
from lightningstore.client.message_json import json_value

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


class Kind(Enum):
    """The type of a column."""

    TEXT = "text"
    TEXTS = "list of texts"
    INTEGER = "integer"
    NUMBER = "number"
    FLAG = "flag"
    #: Token ids.
    IDS = "list of integers of 32 bits"
    #: Zeros and ones.
    BITS = "list of integers of 8 bits"
    FLAGS = "list of flags"
    FLOATS = "list of numbers of 32 bits"
    #: Any JSON value; in Parquet its text.
    JSON = "JSON"
    #: Numbers by name: an object; in Parquet a list of name and value.
    SCORES = "scores"
    SEGMENTS = "segments"


class Row(NamedTuple):
    """A sample, and the attempt that it is of."""

    attempt: AttemptSamples
    sample: Sample


class Column(NamedTuple):
    """One name, and the value that it has in a row."""

    name: str
    kind: Kind
    value: Callable[[Row], Any]


def rows_of(attempts: Iterable[AttemptSamples]) -> Iterator[Row]:
    """Yield the samples of attempts."""
    for attempt in attempts:
        for sample in attempt:
            yield Row(attempt, sample)


def to_json(row: Row, words: str = "") -> dict[str, Any]:
    """Return a row as JSON values, by the names of a trainer; "": this project's names."""
    return {column.name: column.value(row) for column in WORDS[words]}


def encode(row: Row, words: str = "") -> bytes:
    """Return a row as a line of JSON."""
    return f"{_dumps(to_json(row, words))}\n".encode()


# Parts of a row


def _tokens(row: Row) -> list[int]:
    return row.sample.token_ids.tolist()


def _prompt(row: Row) -> list[int]:
    return row.sample.token_ids[: row.sample.prompt_token_count].tolist()


def _response(row: Row) -> list[int]:
    return row.sample.token_ids[row.sample.prompt_token_count :].tolist()


def _flags(row: Row) -> list[bool]:
    return list(row.sample.mask)


def _bits(row: Row) -> list[int]:
    return row.sample.mask.cast("B").tolist()


def _response_bits(row: Row) -> list[int]:
    return _bits(row)[row.sample.prompt_token_count :]


def _logprobs(row: Row) -> list[float] | None:
    return None if row.sample.logprobs is None else row.sample.logprobs.tolist()


def _response_logprobs(row: Row) -> list[float] | None:
    found = _logprobs(row)
    return None if found is None else found[row.sample.prompt_token_count :]


def _target_logprobs(row: Row) -> list[float] | None:
    found = _logprobs(row)
    return None if found is None else found[1:]


def _reward(row: Row) -> float | None:
    return row.sample.reward


def _segments(row: Row) -> list[dict[str, Any]]:
    return [segment._asdict() for segment in row.sample.segments]


def _publish_numbers(row: Row) -> list[int]:
    return [segment.publish_number for segment in row.sample.segments]


def _messages(row: Row) -> Any:
    return (
        json_value(row.sample.message.messages_json) if row.sample.message.messages_json else None
    )


def _tools(row: Row) -> Any:
    return json_value(row.sample.message.tools_json) if row.sample.message.tools_json else None


def _stop_reason(row: Row) -> str:
    return row.sample.segments[-1].finish_reason


def _slime_status(row: Row) -> str:
    if row.sample.truncated:
        return "truncated"
    words = {"succeeded": "completed", "failed": "failed", "cancelled": "aborted"}
    return words.get(row.attempt.status.value, "pending")


def _about(row: Row) -> dict[str, Any]:
    """Return what a trainer has no name of its own for."""
    numbers = _publish_numbers(row)
    return {
        "rollout_id": row.sample.rollout_id,
        "attempt_id": row.sample.attempt_id,
        "index": row.sample.index,
        "group_id": row.sample.group_id,
        "status": row.attempt.status.value,
        "truncated": row.sample.truncated,
        "scores": row.sample.scores,
        "min_publish_number": min(numbers),
        "max_publish_number": max(numbers),
        "queue_seconds": row.attempt.queue_seconds,
        "run_seconds": row.attempt.run_seconds,
    }


_IDENTITY = (
    Column("rollout_id", Kind.TEXT, lambda row: row.sample.rollout_id),
    Column("attempt_id", Kind.TEXT, lambda row: row.sample.attempt_id),
    Column("index", Kind.INTEGER, lambda row: row.sample.index),
    Column("group_id", Kind.TEXT, lambda row: row.sample.group_id),
)
_OWN = (
    *_IDENTITY,
    Column("status", Kind.TEXT, lambda row: row.attempt.status.value),
    Column("reward", Kind.NUMBER, _reward),
    Column("scores", Kind.SCORES, lambda row: row.sample.scores),
    Column("truncated", Kind.FLAG, lambda row: row.sample.truncated),
    Column("turn_count", Kind.INTEGER, lambda row: row.sample.turn_count),
    Column("prompt_token_count", Kind.INTEGER, lambda row: row.sample.prompt_token_count),
    Column("token_ids", Kind.IDS, _tokens),
    Column("mask", Kind.FLAGS, _flags),
    Column("logprobs", Kind.FLOATS, _logprobs),
    Column("segments", Kind.SEGMENTS, _segments),
    Column("queue_seconds", Kind.NUMBER, lambda row: row.attempt.queue_seconds),
    Column("run_seconds", Kind.NUMBER, lambda row: row.attempt.run_seconds),
    Column("image_urls", Kind.TEXTS, lambda row: row.sample.image_urls),
    Column("messages", Kind.JSON, _messages),
    Column("tools", Kind.JSON, _tools),
)

#: The columns by the words of this project ("") and of trainers.
WORDS: dict[str, tuple[Column, ...]] = {
    "": _OWN,
    # GRPOTrainer(rollout_func): other keys are passed to the reward functions.
    "trl": (
        Column("prompt_ids", Kind.IDS, _prompt),
        Column("completion_ids", Kind.IDS, _response),
        Column("logprobs", Kind.FLOATS, _response_logprobs),
        Column("env_mask", Kind.BITS, _response_bits),
        Column("reward", Kind.NUMBER, _reward),
        *_IDENTITY,
    ),
    # AgentLoopOutput
    "verl": (
        Column("prompt_ids", Kind.IDS, _prompt),
        Column("response_ids", Kind.IDS, _response),
        Column("response_mask", Kind.BITS, _response_bits),
        Column("response_logprobs", Kind.FLOATS, _response_logprobs),
        Column("reward_score", Kind.NUMBER, _reward),
        Column("num_turns", Kind.INTEGER, lambda row: row.sample.turn_count),
        Column("extra_fields", Kind.JSON, _about),
    ),
    # GeneratorOutput, of which each column is a list.
    "skyrl": (
        Column("prompt_token_ids", Kind.IDS, _prompt),
        Column("response_ids", Kind.IDS, _response),
        Column("rewards", Kind.NUMBER, _reward),
        Column("loss_masks", Kind.BITS, _response_bits),
        Column("stop_reasons", Kind.TEXT, _stop_reason),
        Column("rollout_logprobs", Kind.FLOATS, _response_logprobs),
        Column(
            "trajectory_ids",
            Kind.JSON,
            lambda row: {
                "instance_id": row.sample.group_id or row.sample.rollout_id,
                "repetition_id": row.sample.rollout_id,
            },
        ),
        Column("is_last_step", Kind.FLAG, lambda row: row.sample is row.attempt[-1]),
    ),
    # Sample, of slime and miles. loss_mask and rollout_log_probs are those of the response.
    "slime": (
        Column("index", Kind.INTEGER, lambda row: row.sample.index),
        Column("prompt", Kind.JSON, _messages),
        Column("tokens", Kind.IDS, _tokens),
        Column("response_length", Kind.INTEGER, lambda row: len(_response(row))),
        Column("reward", Kind.NUMBER, _reward),
        Column("loss_mask", Kind.BITS, _response_bits),
        Column("rollout_log_probs", Kind.FLOATS, _response_logprobs),
        Column("weight_versions", Kind.TEXTS, lambda row: list(map(str, _publish_numbers(row)))),
        Column("status", Kind.TEXT, _slime_status),
        Column("metadata", Kind.JSON, _about),
    ),
    # TrainingSample; temperatures and env_name are known to the caller alone.
    "prime-rl": (
        Column("token_ids", Kind.IDS, _tokens),
        Column("mask", Kind.FLAGS, _flags),
        Column("logprobs", Kind.FLOATS, _logprobs),
        Column("reward", Kind.NUMBER, _reward),
        *_IDENTITY,
    ),
    # Trajectory
    "art": (
        Column("messages_and_choices", Kind.JSON, _messages),
        Column("tools", Kind.JSON, _tools),
        Column("reward", Kind.NUMBER, _reward),
        Column("initial_policy_version", Kind.INTEGER, lambda row: min(_publish_numbers(row))),
        Column("final_policy_version", Kind.INTEGER, lambda row: max(_publish_numbers(row))),
        Column("metrics", Kind.JSON, lambda row: row.sample.scores),
        Column("metadata", Kind.JSON, _about),
    ),
    # Datum: the inputs are all tokens but the last, the targets all but the first. Advantages are the caller's.
    "tinker": (
        Column("model_input", Kind.IDS, lambda row: _tokens(row)[:-1]),
        Column("target_tokens", Kind.IDS, lambda row: _tokens(row)[1:]),
        Column("mask", Kind.BITS, lambda row: _bits(row)[1:]),
        Column("logprobs", Kind.FLOATS, _target_logprobs),
        Column("reward", Kind.NUMBER, _reward),
        *_IDENTITY,
    ),
}
#: Names of trainers.
TRAINERS = tuple(word for word in WORDS if word)
