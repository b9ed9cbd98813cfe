"""Page tokens, bound to their query."""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import msgspec
from google.protobuf.message import Message
from lightningstore.service.rules.errors import PageTokenMismatch


def page_token(query_digest: int, values: list[Any]) -> str:
    """Return an opaque token for the position after the given sort values, bound to its query."""
    return base64.urlsafe_b64encode(msgspec.json.encode([query_digest, values])).decode()


def parse_page_token(token: str, query_digest: int, types: tuple[type, ...]) -> list[Any]:
    """Return the values of a token.

    Raises:
        PageTokenMismatch: The token belongs to another query.
    """
    try:
        found, values = msgspec.json.decode(
            base64.urlsafe_b64decode(token.encode()), type=tuple[int, list[Any]]
        )
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise PageTokenMismatch from None
    if found != query_digest or len(values) != len(types):
        raise PageTokenMismatch
    if not all(type(value) is kind for value, kind in zip(values, types, strict=True)):
        raise PageTokenMismatch
    if page_token(query_digest, values) != token:  # base64 is read leniently
        raise PageTokenMismatch
    return values


def query_digest(request: Message, *paging: str) -> int:
    """Return a number for the filters and the order of a list request, without its paging fields."""
    copy = type(request)()
    copy.CopyFrom(request)
    for name in paging:
        copy.ClearField(name)
    return zlib.crc32(copy.SerializeToString(deterministic=True))
