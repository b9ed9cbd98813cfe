"""Token ids, as tracers and proxies write them: arrays of numbers, or texts of lists."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from lightningstore.client.otlp import from_any_value
from lightningstore.service.rules import wire
from lightningstore.service.triplets.kinds import OPERATION, provider_of
from lightningstore.service.triplets.search import find_first
from lightningstore.service.triplets.values import Attributes, Warn, read_json, serialized
from lightningstore.v1.triplet_pb2 import Triplet
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue

_PROMPT = ("prompt_token_ids", f"{OPERATION}.output.prompt_token_ids")
_RESPONSE = (
    "response_token_ids",
    f"{OPERATION}.output.response_token_ids.0",
    f"{OPERATION}.output.choices.0.token_ids",
    f"{OPERATION}.output.choices.0.provider_specific_fields.token_ids",
)
#: Attributes that hold token ids and nothing else.
ARRAYS = frozenset({*_PROMPT, *_RESPONSE[:2]})
#: Names of the spans that a LiteLLM proxy makes.
RAW_REQUEST = "raw_gen_ai_request"
PROXY_REQUEST = "litellm_request"
PROXY_SPANS = frozenset({RAW_REQUEST, PROXY_REQUEST})
MALFORMED = "not token ids: they must be integers from 0 to 2147483647"
#: Attributes that may hold an answer of a model's server whole.
ANSWERS = (
    "output.value",
    "response_data",
    "gen_ai.completion",
    "mlflow.spanOutputs",
    "traceloop.entity.output",
)
_PROMPT_NAMES = frozenset({"prompt_token_ids"})
_RESPONSE_NAMES = frozenset(
    {"response_token_ids", "token_ids", "output_token_ids", "completion_token_ids"}
)
#: Bytes of a token id.
TOKEN_BYTES = 4
#: Token ids as an array of 32-bit integers, little-endian.
Tokens = bytes
#: Reads a serialised AnyValue; None if it does not hold token ids.
Reading = Callable[[bytes], Tokens | None]
#: Lists in a text, one for each choice of an answer.
_MAX_LISTS = 10_000
#: Integers that are converted at a time: a millisecond, in which no other thread runs.
_AT_ONCE = 1 << 15
_TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
_TOKENS = msgspec.json.Decoder(list[_TokenId]).decode
_TOKEN_LISTS = msgspec.json.Decoder(list[list[_TokenId]]).decode
_ARRAY = AnyValue.ARRAY_VALUE_FIELD_NUMBER
#: The key of an integer in an AnyValue on the wire.
_INTEGER = AnyValue.INT_VALUE_FIELD_NUMBER << 3 | wire.VARINT
_INTEGER_BYTE = bytes([_INTEGER])
_ITEM_BYTE = bytes([ArrayValue.VALUES_FIELD_NUMBER << 3 | wire.LENGTH_DELIMITED])
_UNFINISHED = bytes(range(128, 256))


def read(value: bytes) -> Tokens | None:
    """Return token ids, None if the value has anything else. Text of a list, or of lists, counts as one.

    Args:
        value: A serialised AnyValue.

    Returns:
        The token ids; of a list of lists those of the first one.
    """
    array = array_in(value)
    if array is not None and (ids := of_array(array)) is not None:
        return ids
    return _read(AnyValue.FromString(value))


def _read(value: AnyValue) -> Tokens | None:
    kind = value.WhichOneof("value")
    if kind == "string_value":
        text = value.string_value
        try:
            if text.lstrip()[:2] == "[[":
                if text.count("[") > _MAX_LISTS:
                    return None
                lists = _TOKEN_LISTS(text)
                return array_of(lists[0]) if lists else b""
            return array_of(_TOKENS(text))
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            return None
    if kind != "array_value":
        return None
    items = value.array_value.values
    if items and items[0].WhichOneof("value") == "array_value":
        return _read(items[0])
    return of_array(value.array_value.SerializeToString())


def array_in(value: bytes) -> bytes | None:
    """Return the serialised ArrayValue of a serialised AnyValue, None if it holds anything else."""
    try:
        start = wire.frame(value, _ARRAY)
    except IndexError:
        return None
    return None if start is None else value[start:]


def of_array(array: bytes) -> Tokens | None:
    """Return the integers of a serialised ArrayValue, None if it has anything but integers from 0 to 2^31 - 1.

    On the wire each integer is an item: its key, its size, and in it the key of an integer and the integer. All
    of these are varints, each of which ends in its only byte below 128. If each item holds one integer, every
    fourth of these bytes is therefore the key of an item, and the one two bytes later that of an integer. Protobuf
    then reads the array as if each item were packed numbers, a key and an integer, and builds no messages.
    """
    ends = array.translate(None, _UNFINISHED)
    count = len(ends) // 4
    if (
        len(ends) != 4 * count
        or ends[::4].count(_ITEM_BYTE) != count
        or ends[2::4].count(_INTEGER_BYTE) != count
    ):
        return None
    try:
        numbers = _PackedItems.FromString(array).numbers
    except DecodeError:
        return None
    if len(numbers) != 2 * count:
        return None
    parts = []
    for start in range(0, 2 * count, 2 * _AT_ONCE):
        end = start + 2 * _AT_ONCE
        integers = numbers[start + 1 : end : 2]
        if numbers[start:end:2].count(_INTEGER) != len(integers):
            return None
        try:
            parts.append(array_of(integers))
        except struct.error:
            return None
    return b"".join(parts)


def array_of(ids: Sequence[int]) -> Tokens:
    """Return numbers as token ids."""
    return struct.pack(f"<{len(ids)}i", *ids)


def _packed_items() -> Any:
    """Return the class of a message with the numbers that are packed in field 1."""
    file = descriptor_pb2.FileDescriptorProto(
        name="lightningstore/twins/items.proto", package="lightningstore.twins", syntax="proto3"
    )
    file.message_type.add(name="PackedItems").field.add(
        name="numbers",
        number=ArrayValue.VALUES_FIELD_NUMBER,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"{file.package}.PackedItems")
    )


_PackedItems = _packed_items()


def _checked(ids: Any) -> Tokens | None:
    """Return a list as token ids, or the first of a list of lists; None for anything else."""
    if isinstance(ids, list) and ids and isinstance(ids[0], list):
        ids = ids[0]
    try:
        return array_of(msgspec.convert(ids, list[_TokenId]))
    except msgspec.ValidationError:
        return None


# Of a call


class TokenPlaces(NamedTuple):
    """Keys of a span that hold token ids."""

    prompt: tuple[str, ...]
    response: tuple[str, ...]
    #: Those of a proxy's record, for any provider.
    proxied_prompt: tuple[str, ...]
    proxied_response: tuple[str, ...]
    choices: tuple[str, ...]
    #: Those that may hold an answer whole.
    answers: tuple[str, ...]


def places_of(keys: Sequence[str]) -> TokenPlaces:
    """Return which of the keys hold token ids."""
    proxied = [key for key in keys if key.startswith("llm.")]
    return TokenPlaces(
        tuple(key for key in _PROMPT if key in keys),
        tuple(key for key in _RESPONSE if key in keys),
        tuple(key for key in proxied if provider_of(key, "prompt_token_ids")),
        tuple(key for key in proxied if provider_of(key, "response_token_ids")),
        tuple(key for key in proxied if provider_of(key, "choices")),
        tuple(key for key in ANSWERS if key in keys),
    )


def of_call(
    found: Attributes, places: TokenPlaces, warn: Warn, reading: Reading = read
) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, wherever the attributes of a call hold them."""
    prompt = _first(found, places.prompt, warn, reading)
    response = _first(found, places.response, warn, reading)
    if prompt and response:
        return prompt, response
    if places.proxied_prompt or places.choices:
        more = of_proxy("", found, places, warn)
        prompt, response = prompt or more[0], response or more[1]
    for key in places.answers:
        if not (prompt and response) and "token_ids" in (text := found[key].string_value):
            answer = _parsed_answer(key, text, warn)
            prompt = prompt or _within(answer, _PROMPT_NAMES, key, warn)
            response = response or _within(answer, _RESPONSE_NAMES, key, warn)
    return prompt, response


def of_proxy(
    name: str, found: Attributes, places: TokenPlaces, warn: Warn
) -> tuple[Tokens, Tokens]:
    """Return the token ids of prompt and response, as a proxy writes them for any provider."""
    if name == PROXY_REQUEST and "prompt_token_ids" in found:
        return _first(found, _PROMPT[:1], warn), _first(found, _RESPONSE[:1], warn)
    prompt = _first(found, places.proxied_prompt, warn)
    response = _first(found, places.proxied_response, warn)
    for key in places.choices:
        if not response:
            value = from_any_value(found[key])
            choices = _parsed_answer(key, value, warn) if isinstance(value, str) else value
            response = _within(choices, _RESPONSE_NAMES, key, warn)
    return prompt, response


def _parsed_answer(key: str, text: str, warn: Warn) -> Any:
    try:
        return read_json(text)
    except ValueError as error:
        warn(key, str(error))
        return None


def _within(answer: Any, names: frozenset[str], key: str, warn: Warn) -> Tokens:
    ids = find_first(answer, names)
    if ids is None:
        return b""
    if (checked := _checked(ids)) is None:
        warn(key, MALFORMED)
        return b""
    return checked


def _first(found: Attributes, keys: Iterable[str], warn: Warn, reading: Reading = read) -> Tokens:
    for key in keys:
        if key in found:
            ids = reading(serialized(found, key))
            if ids is not None:
                return ids
            warn(key, MALFORMED)
    return b""


def count(ids: Tokens) -> int:
    """Return how many token ids there are."""
    return len(ids) // TOKEN_BYTES


def put(triplet: Triplet, prompt: Tokens, response: Tokens) -> None:
    """Write token ids into a triplet."""
    for side, ids in ((triplet.prompt, prompt), (triplet.response, response)):
        if ids:
            side.token_ids.extend(struct.unpack(f"<{count(ids)}i", ids))
