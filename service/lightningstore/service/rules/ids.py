"""Ids: made of the operating system's randomness, checked, and digests of requests."""

from __future__ import annotations

import os
import random
import zlib

from google.protobuf.message import Message
from lightningstore.service.rules.errors import FieldInvalid

LATEST = "latest"


MAX_ID_LENGTH = 256


MAX_REQUEST_ID_LENGTH = 64


#: For jitter: its own generator, seeded by the operating system, so that nobody's seed repeats it.
DICE = random.Random()  # noqa: S311


#: The source of ids: a name of this module, so that a simulation can put a seeded one in its place.
random_bytes = os.urandom


def new_id(prefix: str, hex_digits: int) -> str:
    """Return `prefix` and that many random hex digits, an even number.

    They come from the operating system: a program that seeds Python's generator, or forks, must not make
    ids that another one has made.
    """
    return prefix + random_bytes(hex_digits // 2).hex()


def check_id(field: str, value: str, *, required: bool = True) -> None:
    """Refuse an id, by which a record is looked up, that is missing, too long, or the word "latest"."""
    if not value:
        if required:
            raise FieldInvalid(field, "required")
        return
    _check_length(field, value, MAX_ID_LENGTH)
    if value == LATEST:
        raise FieldInvalid(field, f"{LATEST!r} is a word of the contract, not an id")


def check_new_id(field: str, value: str, *, required: bool = True) -> None:
    """Refuse an id for a record that `check_id` refuses, or that contains NUL."""
    check_id(field, value, required=required)
    _check_nul(field, value)


def check_label(field: str, value: str) -> None:
    """Refuse an id of which the store keeps no record, as of a group, that is too long or contains NUL."""
    _check_length(field, value, MAX_ID_LENGTH)
    _check_nul(field, value)


def check_request_id(value: str) -> None:
    """Refuse a request id that is too long or contains NUL."""
    _check_length("request_id", value, MAX_REQUEST_ID_LENGTH)
    _check_nul("request_id", value)


def _check_length(field: str, value: str, limit: int) -> None:
    if len(value) > limit:
        raise FieldInvalid(field, f"{len(value)} characters, at most {limit} are allowed")


def _check_nul(field: str, value: str) -> None:
    """Refuse NUL: databases, and programs in C, end a text there."""
    if "\0" in value:
        raise FieldInvalid(field, "contains NUL (U+0000); use other characters")


def digest(request: Message) -> int:
    """Return a number that tells a repeated request from another one under the same request id."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return zlib.crc32(copy.SerializeToString(deterministic=True))
