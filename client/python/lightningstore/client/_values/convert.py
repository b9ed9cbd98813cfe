"""Conversion between Python values and those of the contract: JSON bytes, times, durations, enum numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from typing import Any, ClassVar, Protocol, TypeVar

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from lightningstore.client._values.text import check, valid_utf8

NANOS = 1_000_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

E = TypeVar("E", bound=Enum)


class DataclassInstance(Protocol):
    """An instance of a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class PydanticModel(Protocol):
    """A model of pydantic, version 2."""

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the fields of the model by name."""


class RawJSON(bytes):
    """JSON text in UTF-8 that is sent unchanged. The client neither encodes nor checks it.

    It can replace every value that would be encoded as JSON: the input or metadata of a rollout, sampling parameters,
    the value of a custom resource, the stats of a worker.

    Example:
        store.enqueue_rollout(RawJSON(b'{"question": 1}'))
    """


#: What can be sent as a JSON object.
JSONObject = Mapping[str, Any] | RawJSON | DataclassInstance | PydanticModel


def plain(value: object) -> object:
    """Return a value in terms of the types that have JSON, one level deep.

    Dataclasses become dicts of their fields, pydantic models what `model_dump` returns. Numpy scalars and arrays, and
    other values with a `dtype`, become numbers and lists.

    Args:
        value: A value that the JSON encoder does not know.

    Returns:
        The value, or the same object if it is of no such type.

    Raises:
        ValueError: A pydantic model cannot be dumped.
    """
    if isinstance(value, type):
        return value
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    # By their methods: neither pydantic nor numpy is imported for this.
    unknown: Any = value
    if callable(getattr(value, "model_dump", None)):
        return unknown.model_dump(mode="json")
    if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
        return unknown.tolist()
    return value


def _encodable(value: object) -> object:
    """Return what the JSON encoder writes instead of a value that it does not know."""
    converted = plain(value)
    if converted is value:
        raise TypeError(f"{type(value).__name__} has no JSON")
    return converted


# JSON has no NaN, and characters are shorter than their escapes. Built once: building it takes as long as using it.
_ENCODER = json.JSONEncoder(
    allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_encodable
)


def to_json(value: object, field: str = "value") -> bytes:
    """Return a value as JSON text in UTF-8.

    Half of a surrogate pair in a text becomes U+FFFD, because UTF-8 cannot encode it. Dataclasses, pydantic models and
    numpy values are converted, see `plain`.

    Args:
        value: The value to encode.
        field: Name of the value in errors.

    Raises:
        TypeError: A part of the value has no JSON (a set, for instance). The message names it.
        ValueError: The same for a number (NaN, an integer with more digits than Python prints) and for a
            value that contains itself or is nested too deeply.
    """
    if isinstance(value, RawJSON):
        return bytes(value)
    try:
        return valid_utf8(_ENCODER.encode(value))
    except TypeError as error:
        raise TypeError(_fault_in(value, field, error)) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(_fault_in(value, field, error)) from None


def to_json_object(value: JSONObject | None, field: str = "value") -> bytes:
    """Return a mapping as JSON text. None and an empty mapping are empty bytes, which the contract reads as {}.

    Raises:
        TypeError: The value is not a mapping, or a part of it has no JSON.
        ValueError: A number has no JSON.
    """
    if isinstance(value, RawJSON):
        return bytes(value)
    if value is None or (isinstance(value, Mapping | Sequence) and not value):
        return b""
    mapping = value if isinstance(value, Mapping) else plain(value)
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{field} must be a mapping, not {type(value).__name__}")
    return to_json(dict(mapping), field) if mapping else b""


def _fault_in(value: object, field: str, error: Exception) -> str:
    """Return which part of a value has no JSON, and why."""
    parts: list[tuple[str, object]] = [(field, value)]
    seen: dict[int, object] = {}  # by id, and kept: the id of a freed object could be another's
    while parts:
        path, part = parts.pop()
        if isinstance(part, float):
            if not math.isfinite(part):
                return f"{path} is {part!r}: JSON has finite numbers only"
        elif isinstance(part, int):
            try:
                int.__repr__(part)
            except ValueError as too_long:
                return f"{path}: {too_long}; write it as a string"
        elif not isinstance(part, str | None) and id(part) not in seen:
            seen[id(part)] = part
            if isinstance(part, Mapping | Sequence) and not isinstance(part, bytes):
                parts.extend(reversed(_parts(path, part)))
                continue
            try:
                encodable = _encodable(part)
            except TypeError:
                return f"{path} is of type {type(part).__name__}, which has no JSON"
            except ValueError as fault:
                return f"{path}: {fault}"
            parts.append((path, encodable))
    return f"{field}: {error}"


def _parts(path: str, value: Mapping[Any, Any] | Sequence[Any]) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [(f"{path}[{key!r:.100}]", item) for key, item in value.items()]
    return [(f"{path}[{index}]", item) for index, item in enumerate(value)]


def from_json(data: bytes, field: str = "value") -> Any:
    """Return the value of a JSON text. An empty text is None.

    Raises:
        ValueError: The text is not JSON, or contains an integer with more digits than Python reads
            (`sys.get_int_max_str_digits`).
    """
    try:
        return json.loads(data) if data else None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def from_json_object(data: bytes) -> dict[str, Any]:
    """Return the dict of a JSON text. An empty text is an empty dict."""
    value: dict[str, Any] = json.loads(data) if data else {}
    return value


def to_timestamp(moment: datetime) -> Timestamp:
    """Return a datetime with a time zone as a Timestamp.

    Raises:
        TypeError: It is not a datetime.
        ValueError: It has no time zone.
    """
    if not isinstance(moment, datetime):
        raise TypeError(f"must be a datetime with a time zone, not {type(moment).__name__}")
    if moment.tzinfo is None:
        raise ValueError("the datetime must have a time zone, as datetime.now(UTC) has")
    since = moment - EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def from_timestamp(stamp: Timestamp) -> datetime:
    """Return a Timestamp as a datetime in UTC, truncated to microseconds."""
    return EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def to_duration(seconds: float) -> Duration:
    """Return seconds as a Duration. Raises ValueError if they are not finite, or more than 64 bits hold."""
    if not math.isfinite(seconds):
        raise ValueError(f"the number of seconds must be finite, not {seconds}")
    if abs(seconds) >= 1 << 63:
        raise ValueError(f"the number of seconds must be below 2 ** 63, not {seconds}")
    whole, nanos = divmod(round(abs(seconds) * NANOS), NANOS)
    sign = -1 if seconds < 0 else 1
    return Duration(seconds=sign * whole, nanos=sign * nanos)


def from_duration(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return duration.seconds + duration.nanos / NANOS


def to_number(descriptor: EnumDescriptor, value: str | int | None) -> int:
    """Return the number of an enum value, given by its word ("queuing") or number. None is 0.

    Numbers are not checked, so that a client can use values of a newer contract. Raises ValueError for an unknown word.
    """
    if value is None:
        return 0
    if isinstance(value, str):
        return _number_of(descriptor, str(value.value if isinstance(value, Enum) else value))
    return value


@lru_cache(256)
def _number_of(descriptor: EnumDescriptor, word: str) -> int:
    value = descriptor.values_by_name.get(_prefix(descriptor) + word.upper())
    if value is None:
        words = ", ".join(_words(descriptor))
        raise ValueError(f"{descriptor.name} must be one of {words}, not {word!r}")
    return int(value.number)


def to_numbers(descriptor: EnumDescriptor, values: Iterable[str | int | None]) -> list[Any]:
    """Return the numbers of enum values. Raises TypeError for a single string."""
    if isinstance(values, str):
        raise TypeError(f"{descriptor.name} values must be a list, not a single string")
    return [to_number(descriptor, value) for value in values]


def from_number(enum: type[E], descriptor: EnumDescriptor, number: int) -> E:
    """Return the member for a number; `UNRECOGNIZED` for a number of a newer contract."""
    members: dict[int, E] = _members(enum, descriptor)
    return members.get(number) or enum("unrecognized")


@lru_cache(64)
def _members(enum: type[E], descriptor: EnumDescriptor) -> dict[int, E]:
    prefix = _prefix(descriptor)
    words = {value.number: value.name[len(prefix) :].lower() for value in descriptor.values}
    known = {member.value: member for member in enum}
    return {number: known[word] for number, word in words.items() if word in known}


def _prefix(descriptor: EnumDescriptor) -> str:
    zero: str = descriptor.values_by_number[0].name
    return zero[: -len("UNSPECIFIED")]


def _words(descriptor: EnumDescriptor) -> list[str]:
    prefix = _prefix(descriptor)
    return [v.name[len(prefix) :].lower() for v in descriptor.values if v.number]


def ids(values: Iterable[str], name: str) -> list[str]:
    """Return a list of ids.

    Raises TypeError for a single string, which would be a list of letters, and ValueError for an id that is
    not valid UTF-8.
    """
    if isinstance(values, str):
        raise TypeError(f"{name} must be a list of strings, not a single string")
    checked = list(values)
    try:
        "".join(checked).encode()
    except UnicodeEncodeError:
        for index, value in enumerate(checked):
            check(f"{name}[{index}]", value)
    return checked


def labels(values: Mapping[str, str] | None, name: str = "labels") -> dict[str, str]:
    """Return labels as a dictionary.

    Raises TypeError for anything but a mapping of strings, and ValueError for a text that is not valid UTF-8.
    """
    if values is None:
        return {}
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of strings, not {type(values).__name__}")
    for key, value in values.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"{name} must have strings as keys and values, not {key!r}: {value!r}")
        check(name, key)
        check(f"{name}[{key!r}]", value)
    return dict(values)


def new_request_id() -> str:
    """Return a new, unique request id."""
    return uuid.uuid4().hex


def new_rollout_id() -> str:
    """Return a new rollout id: "ro-" and 12 random hex digits."""
    return f"ro-{os.urandom(6).hex()}"
