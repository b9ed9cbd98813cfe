"""Checks of fields: JSON, enums, configurations, masks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from lightningstore.service.rules.copies import evolve
from lightningstore.service.rules.errors import FieldInvalid, PayloadTooLarge
from lightningstore.service.rules.statuses import RETRIABLE
from lightningstore.service.rules.texts import shortened
from lightningstore.service.rules.times import check_duration
from lightningstore.v1 import attempt_pb2, rollout_pb2

#: What Python's int() reads by default; other languages read less.
MAX_INTEGER_DIGITS = 4300


_DIGITS = bytes.maketrans(b"123456789", b"000000000")


_RUN = re.compile(b"0+")


_TOO_LONG = b"0" * (MAX_INTEGER_DIGITS + 1)


MAX_FAILURE_TYPE_BYTES = 1 << 10


MAX_FAILURE_MESSAGE_BYTES = 64 << 10


# Raw values are checked, not built: 9 us for 14 KB against 66 us of json.loads.
_any_json = msgspec.json.Decoder(msgspec.Raw)


_object_json = msgspec.json.Decoder(dict[str, msgspec.Raw])


def check_json(field: str, data: bytes) -> None:
    """Refuse bytes that are not one JSON value in UTF-8."""
    try:
        data.decode()
        _any_json.decode(data)
        check_integers(field, data)
    except UnicodeDecodeError as error:
        raise FieldInvalid(field, f"not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise FieldInvalid(field, f"not JSON: {error}") from None


def check_json_object(field: str, data: bytes) -> None:
    """Refuse bytes that are neither empty nor one JSON object in UTF-8."""
    if not data:
        return
    try:
        data.decode()
        _object_json.decode(data)
        check_integers(field, data)
    except UnicodeDecodeError as error:
        raise FieldInvalid(field, f"not UTF-8 at byte {error.start}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise FieldInvalid(field, f"not a JSON object: {error}") from None


def check_integers(field: str, data: bytes) -> None:
    """Refuse valid JSON with an integer of more digits than Python reads: whoever claims it would fail.

    Digits in strings, fractions and exponents may be as many as there are.
    """
    # So many digits in a row fill at least one block of half as many.
    step = MAX_INTEGER_DIGITS // 2
    if not any(data[at : at + step].isdigit() for at in range(0, len(data) - step, step)):
        return
    digits = data.translate(_DIGITS)
    parts, kept = [], 0
    at = digits.find(_TOO_LONG)
    while at >= 0:
        run = _RUN.match(digits, at)
        end = run.end() if run is not None else at
        before, after = data[max(0, at - 2) : at].rstrip(b"+-")[-1:], data[end : end + 1]
        if before not in (b".", b"e", b"E") and after not in (b".", b"e", b"E"):
            # A letter in its place leaves JSON valid in a string alone.
            parts += [data[kept:at], b"x"]
            kept = end
        at = digits.find(_TOO_LONG, end)
    try:
        _any_json.decode(b"".join([*parts, data[kept:]]))
    except msgspec.DecodeError:
        problem = f"holds an integer of more than {MAX_INTEGER_DIGITS} digits; write it as a string"
        raise FieldInvalid(field, problem) from None


def check_metadata(field: str, data: bytes, limit: int) -> None:
    """Refuse metadata with more than `limit` bytes, and what `check_json_object` refuses."""
    if len(data) > limit:
        raise PayloadTooLarge(field, len(data), limit)
    check_json_object(field, data)


def bounded_failure(failure: attempt_pb2.Failure) -> attempt_pb2.Failure:
    """Return a failure whose texts are short enough to be stored: itself, or a copy with cut texts.

    A long text is cut and not refused: a refused report would leave its rollout running.
    """
    kind = shortened(failure.type, MAX_FAILURE_TYPE_BYTES)
    message = shortened(failure.message, MAX_FAILURE_MESSAGE_BYTES)
    if kind == failure.type and message == failure.message:
        return failure
    return evolve(failure, type=kind, message=message)


def check_enum(field: str, enum: Any, value: int, *, unspecified: bool = False) -> None:
    """Refuse a number that is no value of the enum; zero too unless `unspecified`."""
    if value not in enum.DESCRIPTOR.values_by_number or (value == 0 and not unspecified):
        names = [name for name, number in enum.items() if number or unspecified]
        raise FieldInvalid(field, f"{value} is none of {', '.join(names)}")


def check_config(field: str, config: rollout_pb2.RolloutConfig) -> None:
    """Refuse a rollout configuration with values that make no sense."""
    if config.HasField("timeout"):
        check_duration(f"{field}.timeout", config.timeout, positive=True)
    if config.HasField("unresponsive_timeout"):
        check_duration(f"{field}.unresponsive_timeout", config.unresponsive_timeout, positive=True)
    if config.max_attempts < 0:
        raise FieldInvalid(f"{field}.max_attempts", "must not be negative; 0 means 1")
    for i, status in enumerate(config.retry_condition):
        if status not in RETRIABLE:
            names = ", ".join(attempt_pb2.AttemptStatus.Name(s) for s in RETRIABLE)
            raise FieldInvalid(f"{field}.retry_condition[{i}]", f"{status} is none of {names}")
    backoff = config.retry_backoff
    for name in ("initial_delay", "max_delay"):
        check_duration(f"{field}.retry_backoff.{name}", getattr(backoff, name))
    # Written so that NaN fails them.
    if not (backoff.factor == 0 or 1 <= backoff.factor <= 1e6):
        raise FieldInvalid(f"{field}.retry_backoff.factor", "from 1 to 1e6, or 0 for 1")
    if not 0 <= backoff.jitter <= 1:
        raise FieldInvalid(f"{field}.retry_backoff.jitter", "from 0 to 1")


def mask_paths(mask: FieldMask | None, record: Message, allowed: Iterable[str]) -> list[str]:
    """Return the paths that an update names: the mask's, or else all allowed fields with a value.

    Raises FieldInvalid for a path that is not allowed.
    """
    if mask is None:
        present = {descriptor.name for descriptor, _ in record.ListFields()}
        return [path for path in allowed if path in present]
    for i, path in enumerate(mask.paths):
        if path not in allowed:
            raise FieldInvalid(
                f"update_mask.paths[{i}]", f"{path!r} is none of {', '.join(allowed)}"
            )
    return list(dict.fromkeys(mask.paths))
