"""Hides API keys of language models from roles that may not see them. Pure."""

from __future__ import annotations

from functools import lru_cache

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from lightningstore.v1.resources_pb2 import LLM

#: Replacement for a key.
MASK = "•••"
_LLM = LLM.DESCRIPTOR.full_name


@lru_cache(None)
def holds_keys(descriptor: Descriptor) -> bool:
    """Return whether a message of this type can contain a key at any depth."""
    seen: set[str] = set()
    open_ends = [descriptor]
    while open_ends:
        here = open_ends.pop()
        if here.full_name == _LLM:
            return True
        if here.full_name not in seen:
            seen.add(here.full_name)
            open_ends += [field.message_type for field in here.fields if field.message_type]
    return False


def mask_keys(message: Message) -> None:
    """Replace every key inside a message by the mask."""
    if isinstance(message, LLM):
        if message.api_key:
            message.api_key = MASK
        return
    for field, value in message.ListFields():
        inner = field.message_type
        if inner is None or not holds_keys(inner):
            continue
        if isinstance(value, Message):
            mask_keys(value)
        else:  # a list, or a map whose values are messages
            for item in value.values() if inner.GetOptions().map_entry else value:
                mask_keys(item)
