"""Generates and checks ids; computes digests of requests."""

from __future__ import annotations

import os
import random
import zlib

from google.protobuf.message import Message
from lightningstore.service.rules.errors import FieldInvalid

LATEST = "latest"


MAX_ID_LENGTH = 256


MAX_REQUEST_ID_LENGTH = 64


#: Random numbers for jitter. A separate generator, seeded by the operating system, so that a seed
#: of another module does not make it repeat.
DICE = random.Random()  # noqa: S311


#: The source of ids. A name of this module, so that a simulation can replace it by a seeded one.
random_bytes = os.urandom


def new_id(prefix: str, hex_digits: int) -> str:
    """Return `prefix` and `hex_digits` random hex digits (an even number).

    They come from the operating system: a program that seeds Python's generator, or forks, must not
    generate the ids of another one.
    """
    return prefix + random_bytes(hex_digits // 2).hex()


def check_id(field: str, value: str, *, required: bool = True) -> None:
    """Raise FieldInvalid for an id of a record that is missing, too long, or "latest"."""
    if not value:
        if required:
            raise FieldInvalid(field, "required")
        return
    _check_length(field, value, MAX_ID_LENGTH)
    if value == LATEST:
        raise FieldInvalid(field, f"{LATEST!r} is reserved and cannot be an id")


def check_new_id(field: str, value: str, *, required: bool = True) -> None:
    """Raise FieldInvalid for an id of a new record that `check_id` rejects or that contains NUL."""
    check_id(field, value, required=required)
    _check_nul(field, value)


def check_label(field: str, value: str) -> None:
    """Raise FieldInvalid for a label, such as a group id, that is too long or contains NUL."""
    _check_length(field, value, MAX_ID_LENGTH)
    _check_nul(field, value)


def check_request_id(value: str) -> None:
    """Raise FieldInvalid for a request id that is too long or contains NUL."""
    _check_length("request_id", value, MAX_REQUEST_ID_LENGTH)
    _check_nul("request_id", value)


def _check_length(field: str, value: str, limit: int) -> None:
    if len(value) > limit:
        raise FieldInvalid(field, f"{len(value)} characters, at most {limit} are allowed")


def _check_nul(field: str, value: str) -> None:
    """Raise FieldInvalid for NUL, which ends a text in some databases and in C programs."""
    if "\0" in value:
        raise FieldInvalid(field, "contains NUL (U+0000); use other characters")


def digest(request: Message) -> int:
    """Return a number that distinguishes repeats from different requests with the same request id."""
    copy = type(request)()
    copy.CopyFrom(request)
    copy.ClearField("request_id")
    return zlib.crc32(copy.SerializeToString(deterministic=True))
