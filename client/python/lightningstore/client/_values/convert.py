"""Python values to and from what the contract carries: JSON bytes, times, durations, enum numbers."""

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
    """JSON text in UTF-8 that is sent as it is: it is neither encoded nor checked by the client.

    Takes the place of any value that would be turned into JSON: the input or metadata of a rollout,
    sampling parameters, the value of a custom resource, the stats of a worker.
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
    found = plain(value)
    if found is value:
        raise TypeError(f"{type(value).__name__} has no JSON")
    return found


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
    """Return a mapping as JSON; nothing for None or an empty one, which the contract reads as {}.

    Raises what `to_json` raises, and TypeError for what is not a mapping.
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
    """Return the value of a JSON text; None for an empty one.

    Raises ValueError for a number that Python does not read: an integer of more digits than
    `sys.get_int_max_str_digits`.
    """
    try:
        return json.loads(data) if data else None
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None


def from_json_object(data: bytes) -> dict[str, Any]:
    """Return the dict of a JSON text; an empty one for an empty text."""
    value: dict[str, Any] = json.loads(data) if data else {}
    return value


def to_timestamp(moment: datetime) -> Timestamp:
    """Return a time zone aware datetime as Timestamp. Raises ValueError for a naive one."""
    if moment.tzinfo is None:
        raise ValueError("a datetime with a time zone is wanted: datetime.now(timezone.utc)")
    since = moment - EPOCH
    return Timestamp(seconds=since.days * 86_400 + since.seconds, nanos=since.microseconds * 1000)


def from_timestamp(stamp: Timestamp) -> datetime:
    """Return a Timestamp as datetime in UTC, cut to microseconds."""
    return EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1000)


def to_duration(seconds: float) -> Duration:
    """Return seconds as Duration. Raises ValueError if they are not finite."""
    if not math.isfinite(seconds):
        raise ValueError(f"a finite number of seconds is wanted, not {seconds}")
    whole, nanos = divmod(round(abs(seconds) * NANOS), NANOS)
    sign = -1 if seconds < 0 else 1
    return Duration(seconds=sign * whole, nanos=sign * nanos)


def from_duration(duration: Duration) -> float:
    """Return a Duration in seconds."""
    return duration.seconds + duration.nanos / NANOS


def to_number(descriptor: EnumDescriptor, value: str | int | None) -> int:
    """Return the number of an enum value: by its name here ("queuing"), its number, 0 for None.

    Numbers go through unchecked, so that a client can name what came after it. Raises ValueError for an
    unknown name.
    """
    if value is None:
        return 0
    if isinstance(value, str):
        return _number_of(descriptor, str(value.value if isinstance(value, Enum) else value))
    return value


@lru_cache(256)
def _number_of(descriptor: EnumDescriptor, word: str) -> int:
    found = descriptor.values_by_name.get(_prefix(descriptor) + word.upper())
    if found is None:
        words = ", ".join(_words(descriptor))
        raise ValueError(f"{word!r} is no {descriptor.name}: one of {words} is wanted")
    return int(found.number)


def to_numbers(descriptor: EnumDescriptor, values: Iterable[str | int | None]) -> list[Any]:
    """Return the numbers of enum values. Raises TypeError for a bare string, which is no list."""
    if isinstance(values, str):
        raise TypeError(f"a list of {descriptor.name} is wanted, not one string")
    return [to_number(descriptor, value) for value in values]


def from_number(enum: type[E], descriptor: EnumDescriptor, number: int) -> E:
    """Return the member for a number, the member `UNRECOGNIZED` for one that came after this client."""
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

    Raises TypeError for a bare string, which would be a list of letters, and ValueError for an id that is
    not valid UTF-8.
    """
    if isinstance(values, str):
        raise TypeError(f"{name}: a list of strings is wanted, not one string")
    found = list(values)
    try:
        "".join(found).encode()
    except UnicodeEncodeError:
        for index, value in enumerate(found):
            check(f"{name}[{index}]", value)
    return found


def new_request_id() -> str:
    """Return a request id that nobody else has."""
    return uuid.uuid4().hex


def new_rollout_id() -> str:
    """Return "ro-" and 12 random hex digits."""
    return f"ro-{os.urandom(6).hex()}"
