"""A rollout as one line of JSON, and back.

What the caller gave as JSON (input, metadata) goes in and comes out as the text it was, so numbers keep all
their digits and objects their order; only line breaks, and blanks around it, go.
Keys stand in a fixed order.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from lightningstore.client._datasets import otlp_json
from lightningstore.client._datasets.exported import ExportedRollout
from lightningstore.client._values import convert
from lightningstore.client._values.attempts import ATTEMPT_STATUS, REWARD_SOURCE, Attempt
from lightningstore.client._values.rollouts import ROLLOUT_MODE, ROLLOUT_STATUS
from lightningstore.client._values.triplets import AttemptTriplets, Triplet
from lightningstore.client.message_json import json_value, message_to_json, time_text, word
from lightningstore.client.values import Rollout
from lightningstore.v1 import attempt_pb2, rollout_pb2

_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
#: Numbers of a text that is passed on as it is are not looked at.
_raw = json.JSONDecoder(parse_int=str, parse_float=str)
_parsed = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
#: Times of an attempt.
TIMES = ("start_time", "end_time", "last_heartbeat_time")
#: Parts of an attempt that exports of earlier versions do not have.
ADDED = ("publish_number", "reward", "scores", "reward_source", "span_reward")
ATTEMPT_KEYS = (
    *("attempt_id", "sequence_number", "status", "worker_id", "resources_id", "resources_version"),
    *("publish_number", "span_count", *TIMES, "failure", *ADDED[1:]),
)
_INT32 = 1 << 31
#: Values that are taken as text: the caller's own, and what is read by itself where it is wanted.
RAW_KEYS = frozenset({"input", "metadata", "attempts", "triplets"})


def encode(exported: ExportedRollout) -> bytes:
    """Encode a rollout as one line of JSON.

    Args:
        exported: The rollout, with its triplets if they were requested.

    Returns:
        The line in UTF-8, its line break included.
    """
    record = exported.rollout.message
    parts = [
        ("rollout_id", _dumps(record.rollout_id)),
        ("status", _dumps(word(ROLLOUT_STATUS, record.status))),
        ("reward", _dumps(exported.reward)),
        ("mode", _dumps(word(ROLLOUT_MODE, record.mode))),
        ("priority", _dumps(record.priority)),
        ("group_id", _dumps(record.group_id)),
        ("resources_id", _dumps(record.resources_id)),
        ("queue", _dumps(record.queue)),
        ("labels", _dumps(dict(sorted(record.labels.items())))),
        ("start_time", _dumps(time_text(record.start_time))),
        ("end_time", _dumps(time_text(record.end_time))),
        ("attempt_count", _dumps(record.attempt_count)),
        ("latest_attempt_id", _dumps(record.latest_attempt_id)),
        ("config", _dumps(config_to_json(record.config))),
        ("metadata", one_line(record.metadata_json or b"{}")),
        ("input", one_line(record.input_json)),
        ("attempts", f"[{','.join(_attempt(a.message) for a in exported.attempts)}]"),
    ]
    if exported.triplets is not None:
        parts += _triplets(exported.triplets)
    if exported.batches is not None:
        spans = [otlp_json.batch_to_json(batch) for batch in exported.batches]
        parts.append(("spans", _dumps(spans)))
    return ("{" + ",".join(f'"{key}":{text}' for key, text in parts) + "}\n").encode()


def one_line(data: bytes) -> str:
    """Return a JSON text without line breaks and blanks around it, which are never part of a value."""
    return data.translate(None, b"\r\n").strip(b" \t").decode()


def config_to_json(config: rollout_pb2.RolloutConfig) -> dict[str, Any]:
    """Return a configuration."""
    return message_to_json(config)


def attempt_to_json(record: attempt_pb2.Attempt) -> dict[str, Any]:
    """Return an attempt without its metadata, keys in the order of an export."""
    told = message_to_json(record, without=("rollout_id", "metadata_json"))
    return {key: told[key] for key in ATTEMPT_KEYS}


def _attempt(record: attempt_pb2.Attempt) -> str:
    metadata = one_line(record.metadata_json or b"{}")
    return f'{_dumps(attempt_to_json(record))[:-1]},"metadata":{metadata}}}'


def _triplets(attempts: Sequence[AttemptTriplets]) -> list[tuple[str, str]]:
    """Return the triplets of a rollout, and what was left over."""
    triplets = ",".join(_triplet(triplet) for attempt in attempts for triplet in attempt)
    unmatched = [
        {"attempt_id": attempt.attempt_id, **reward._asdict()}
        for attempt in attempts
        for reward in attempt.unmatched_rewards
    ]
    warnings = sum(attempt.warning_count for attempt in attempts)
    return [
        ("triplets", f"[{triplets}]"),
        ("unmatched_rewards", _dumps(unmatched)),
        ("triplet_warning_count", _dumps(warnings)),
    ]


def _triplet(triplet: Triplet) -> str:
    message = triplet.message
    told = {
        "attempt_id": triplet.attempt_id,
        "sequence_id": triplet.sequence_id,
        "span_id": triplet.span_id,
        "agent_name": triplet.agent_name,
        "response_id": triplet.response_id,
        "reward": triplet.reward,
        "rewards": triplet.rewards,
        "prompt_token_ids": triplet.prompt_token_ids,
        "response_token_ids": triplet.response_token_ids,
        "prompt_token_count": triplet.prompt_token_count,
        "response_token_count": triplet.response_token_count,
        "logprobs": triplet.logprobs,
        "image_urls": triplet.image_urls,
    }
    texts = {
        "prompt": message.prompt.content_json or b"null",
        "response": message.response.content_json or b"null",
        "tools": message.prompt.tools_json or b"null",
        "logprobs_content": message.response.logprobs_json or b"null",
        "request_metadata": message.request_json or b"{}",
        "response_metadata": message.response_json or b"{}",
    }
    raw = "".join(f',"{key}":{one_line(text)}' for key, text in texts.items())
    return f"{_dumps(told)[:-1]}{raw}}}"


def triplet_to_json(triplet: Triplet) -> dict[str, Any]:
    """Convert a triplet to JSON values, with the keys that it has in an export.

    Args:
        triplet: The triplet.

    Returns:
        A JSON object.
    """
    row: dict[str, Any] = json_value(_triplet(triplet).encode())
    return row


def row_of(line: bytes) -> dict[str, Any]:
    """Return the keys and values of a line; of RAW_KEYS the text. Raises ValueError."""
    try:
        row = dict(members(line.decode()))
    except RecursionError:
        raise ValueError("it nests too deep") from None
    missing = [key for key in ("rollout_id", "status", "input", "attempts") if key not in row]
    if missing:
        raise ValueError(f"no exported rollout: it has no {' and no '.join(missing)}")
    if type(row["rollout_id"]) is not str:
        raise ValueError(f"rollout_id must be a string, not {shown(row['rollout_id'])}")
    return row


def shown(value: Any) -> str:
    """Return a value that is wrong as an error shows it: cut, for it may be anything."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def members(text: str) -> Iterator[tuple[str, Any]]:
    """Yield the keys and values of an object; of RAW_KEYS the text. Raises ValueError, also for text behind it."""
    at = _SPACE.match(text, 0).end()  # type: ignore[union-attr]
    if text[at : at + 1] != "{":
        raise ValueError("the line must be a JSON object")
    while True:
        at = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            break
        if text[at : at + 1] != '"':
            raise ValueError(f"expected a key in quotation marks at character {at}")
        key, at = scanstring(text, at + 1)
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] != ":":
            raise ValueError(f"expected a colon at character {at}")
        start = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
        value, at = (_raw if key in RAW_KEYS else _parsed).raw_decode(text, start)
        yield key, text[start:at] if key in RAW_KEYS else value
        at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
        if text[at : at + 1] == "}":
            break
        if text[at : at + 1] != ",":
            raise ValueError(f"expected a comma at character {at}")
    end = _SPACE.match(text, at + 1).end()  # type: ignore[union-attr]
    if end < len(text):
        raise ValueError(f"text after the object at character {end}: a line must be one object")


def decode(line: bytes) -> ExportedRollout:
    """Decode a line of JSON.

    Args:
        line: The line, as `encode` returns it.

    Returns:
        The rollout, without its triplets.

    Raises:
        ValueError: The line is not an exported rollout. The error names the field.
    """
    row = row_of(line)
    rollout = Rollout(rollout_from_json(row))
    rollout_id = rollout.rollout_id
    attempts = [attempt_from_json(rollout_id, one) for one in attempts_of(row["attempts"])]
    batches = None
    if "spans" in row:
        batches = [
            otlp_json.batch_from_json(told, rollout_id) for told in otlp_json.objects(row, "spans")
        ]
    return ExportedRollout(rollout, attempts, batches)


def attempts_of(text: str) -> Iterator[dict[str, Any]]:
    """Yield the attempts of a row, their metadata as text. Raises ValueError."""
    at = _SPACE.match(text, 1).end()  # type: ignore[union-attr]
    while text[0] == "[" and text[at] == "{":
        _, end = _raw.raw_decode(text, at)
        yield dict(members(text[at:end]))
        at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        at = _SPACE.match(text, at + 1).end() if text[at] == "," else at  # type: ignore[union-attr]
    if text[0] != "[" or text[at] != "]":
        raise ValueError(f"attempts must be a list of objects, not {shown(text)}")


def rollout_from_json(row: dict[str, Any]) -> rollout_pb2.Rollout:
    """Return the record of a row, whose input and metadata are text. Raises ValueError."""
    record = otlp_json.read(
        rollout_pb2.Rollout,
        {
            name: row.get(name)
            for name in (
                "rollout_id",
                "priority",
                "group_id",
                "resources_id",
                "start_time",
                "end_time",
                "attempt_count",
                "latest_attempt_id",
                "queue",
                "labels",
            )
        },
    )
    record.status = _number("status", ROLLOUT_STATUS, row["status"])
    record.mode = _number("mode", ROLLOUT_MODE, row.get("mode"))
    record.config.CopyFrom(_config(row.get("config")))
    record.input_json = row["input"].encode()
    record.metadata_json = _metadata(row)
    return record


def _config(told: Any) -> rollout_pb2.RolloutConfig:
    if told is not None and not isinstance(told, dict):
        raise ValueError(f"config must be an object, not {shown(told)}")
    config = dict(told or {})
    words = config.pop("retry_condition", None)
    if words is not None and not isinstance(words, list):
        raise ValueError(f"config.retry_condition must be a list, not {shown(words)}")
    record = otlp_json.read(rollout_pb2.RolloutConfig, config)
    for status in words or ():
        record.retry_condition.append(_number("config.retry_condition", ATTEMPT_STATUS, status))
    return record


def _number(name: str, descriptor: EnumDescriptor, told: Any) -> Any:
    """Return the number of an enum's value, given as a word, or as a number that is newer than this client."""
    named = isinstance(told, str) and told.isascii()
    number = type(told) is int and -_INT32 <= told < _INT32
    if told is not None and not named and not number:
        raise ValueError(f"{name} must be a word, not {shown(told)}")
    try:
        return convert.to_number(descriptor, told)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def attempt_from_json(rollout_id: str, fields: dict[str, Any]) -> Attempt:
    """Return an attempt, whose metadata is text. Raises ValueError."""
    fields = dict(fields)
    status, metadata = fields.pop("status", None), _metadata(fields)
    origin = fields.pop("reward_source", None)
    record = otlp_json.read(
        attempt_pb2.Attempt, {k: v for k, v in fields.items() if k != "metadata"}
    )
    record.rollout_id = rollout_id
    record.status = _number("attempts: status", ATTEMPT_STATUS, status)
    record.reward_source = _number("attempts: reward_source", REWARD_SOURCE, origin)
    record.metadata_json = metadata
    return Attempt(record)


def _metadata(row: dict[str, Any]) -> bytes:
    """Return the metadata; nothing stands for an empty object."""
    text = row.get("metadata") or ""
    return b"" if text in ("{}", "null") else text.encode()
