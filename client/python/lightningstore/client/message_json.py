"""Messages of the contract as JSON values, as exports and the command line write them.

Every field is there: null for an unset message or optional field, else the field's empty value. Enums are the
lower-case words of the contract without their prefix, null for unspecified. 64-bit integers are numbers, times RFC
3339 in UTC, durations seconds with an `s`. A field `x_json` holds the JSON and is named `x`, unless another is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

__all__ = ["json_value", "message_to_json", "time_text", "word"]

#: Fields whose empty text means {}; any other empty text means null.
_OBJECTS = frozenset({"metadata_json", "sampling_parameters_json", "request_json", "response_json"})
_JSON = "_json"


def message_to_json(message: Message, *, without: Iterable[str] = ()) -> dict[str, Any]:
    """Convert a message to JSON values, with its fields in the order of the contract.

    Args:
        message: A message of the contract, or a message inside one.
        without: Names of fields to leave out of this message. Messages inside it keep all fields.

    Returns:
        A dict with a value for every field.
    """
    skipped = frozenset(without)
    values: dict[str, Any] = {}
    names = message.DESCRIPTOR.fields_by_name
    for name, field in names.items():
        if name not in skipped:
            is_json = field.type == FieldDescriptor.TYPE_BYTES and name.endswith(_JSON)
            short = name.removesuffix(_JSON) if is_json else name
            values[name if short in names else short] = _field(message, field)
    return values


def _field(message: Message, field: Any) -> Any:
    if field.has_presence and not message.HasField(field.name):
        return None
    value = getattr(message, field.name)
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        item = inner.fields_by_name["value"]
        return {str(key): _value(item, value[key]) for key in sorted(value)}
    # A list, as in every version of protobuf; is_repeated came with a late one.
    if isinstance(value, (str, bytes)) or not hasattr(value, "__len__"):
        return _value(field, value)
    return [_value(field, item) for item in value]


def _value(field: FieldDescriptor, value: Any) -> Any:
    if isinstance(value, Timestamp):
        return time_text(value)
    if isinstance(value, Duration):
        return value.ToJsonString()
    if isinstance(value, Message):
        return message_to_json(value)
    if field.enum_type is not None:
        return word(field.enum_type, value)
    if isinstance(value, bytes):
        if not field.name.endswith(_JSON):
            return value.hex()
        return json_value(value) if value else {} if field.name in _OBJECTS else None
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no such numbers
    return value


def word(descriptor: EnumDescriptor, number: int) -> str | int | None:
    """Return the word for an enum value.

    Args:
        descriptor: The enum.
        number: Number of the value.

    Returns:
        The lower-case word without the prefix of the enum. None: unspecified. The number, if this client does not know
        the value.
    """
    if not number:
        return None
    value = descriptor.values_by_number.get(number)
    if value is None:
        return number
    prefix = descriptor.values_by_number[0].name[: -len("UNSPECIFIED")]
    return str(value.name)[len(prefix) :].lower()


def time_text(time: Timestamp) -> str:
    """Convert a time to text.

    Args:
        time: The time.

    Returns:
        The time in UTC after RFC 3339, with all its digits.
    """
    return time.ToJsonString()


def json_value(text: bytes) -> Any:
    """Parse a JSON text.

    Args:
        text: The text in UTF-8.

    Returns:
        The value. A number that Python does not read, or that overflows, stays text.

    Raises:
        ValueError: The text is not JSON.
    """
    return json.loads(text, parse_int=_integer, parse_float=_float)


def _integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def _float(digits: str) -> float | str:
    value = float(digits)
    return value if math.isfinite(value) else digits
