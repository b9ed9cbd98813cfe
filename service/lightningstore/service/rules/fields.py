"""What a field of a message is, with each supported version of protobuf."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor

_DELIMITED = frozenset(
    {FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING}
)


def is_repeated(field: FieldDescriptor) -> bool:
    """Return whether a field is repeated. Early versions do not have `is_repeated`, late ones warn of `label`."""
    known: bool | None = getattr(field, "is_repeated", None)
    if known is None:
        return bool(field.label == FieldDescriptor.LABEL_REPEATED)  # type: ignore[attr-defined]
    return known


def is_packed(field: FieldDescriptor) -> bool:
    """Return whether a field of a proto3 message holds numbers that are packed."""
    return is_repeated(field) and field.type not in _DELIMITED
